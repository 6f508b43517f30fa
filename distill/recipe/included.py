"""The recipes that are included in distill, by name."""

from pathlib import Path

from distill.errors import UserError, suggest


def recipes_folder() -> Path:
    """Return the folder of the included recipes.

    It is in the package when distill is installed, and beside the package in a checkout.
    """
    package = Path(__file__).parent.parent
    in_package = package / "recipes"
    return in_package if in_package.is_dir() else package.parent / "recipes"


def included_recipes() -> dict[str, Path]:
    """Return the files of the included recipes by their names, such as ``paper/map``, sorted."""
    folder = recipes_folder()
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
    }


def find_recipe(name: str) -> Path:
    """Return the file with that path or, if there is none, the included recipe of that name.

    Raises:
        UserError: if a name without a suffix is neither.
    """
    path = Path(name).expanduser()
    included = included_recipes()
    if name in included and not path.is_file():
        return included[name]
    if not path.suffix and not path.exists():
        raise UserError(f"there is no file and no recipe '{name}'; {suggest(name, included)}")
    if not path.exists():
        raise UserError(
            f"there is no file {name} in {Path.cwd()}; `distill recipes` lists the included recipes"
        )
    if path.is_dir():
        recipes = sorted(entry.name for entry in path.glob("*.yaml"))
        raise UserError(f"{name} is a folder; name a recipe in it: {', '.join(recipes) or 'none'}")
    return path
