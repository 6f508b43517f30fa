"""Load a recipe: from a YAML file or a dictionary to a checked `Recipe`."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.errors import Problem, RecipeError, UserError
from distill.recipe.arms import ArmBuilder
from distill.recipe.data_schema import BUILT_IN_SOURCES
from distill.recipe.loss_terms import Terms
from distill.recipe.problems import Problems
from distill.recipe.schema import Data, Document, Recipe
from distill.recipe.validation import check
from distill.recipe.yaml_reader import override, read_yaml


def load(path: str | Path, terms: Terms, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe of a YAML file.

    Args:
        path: the YAML file; its name without the suffix is the name of the study.
        terms: the known loss terms, as functions by name. Their signatures define the keys of the
            terms.
        overrides: ``KEY=VALUE`` texts that replace values of the file.

    Raises:
        RecipeError: with every problem found, each with its line and key.
        UserError: if the file cannot be read or an override is not ``KEY=VALUE``.
    """
    path = Path(path)
    problems = Problems(str(path))
    document = read_yaml(_read_text(path), problems)
    if not isinstance(document, dict):
        message = f"must be a mapping with data, train, teachers and students, got {document!r}"
        raise RecipeError(Problem(str(path), None, "", "dict_type", message))
    override(document, overrides, problems)
    _find_files_beside(path, document)
    return _build_or_raise(path.stem, document, terms, problems)


def recipe_from_dict(
    document: dict[str, Any], terms: Terms, overrides: Iterable[str] = (), name: str = "recipe"
) -> Recipe:
    """Return the recipe that a dictionary describes, as `load` does for a file.

    Args:
        document: the content of a recipe; it is not changed.
        terms: known loss terms, see `load`.
        overrides: ``KEY=VALUE`` texts that replace values of the dictionary.
        name: the name of the study, which messages show instead of a file.

    Raises:
        RecipeError: with every problem found, each with its key.
        UserError: if an override is not ``KEY=VALUE``.
    """
    document = copy.deepcopy(document)
    problems = Problems(name)
    problems.lines[()] = name
    override(document, overrides, problems)
    return _build_or_raise(name, document, terms, problems)


def data_settings(assignments: Iterable[str], source: str = "folder") -> dict[str, Any]:
    """Return the keys of `data` that `distill evaluate` gets as ``KEY=VALUE`` texts.

    Args:
        assignments: texts such as ``image_size=256``; a leading ``data.`` is allowed.
        source: the source of the images: a value of `data.source`, or a folder or tar file.

    Raises:
        RecipeError: with every problem found.
        UserError: if a text is not ``KEY=VALUE``.
    """
    settings: dict[str, Any] = {}
    problems = Problems("data")
    problems.lines[()] = "data"
    override(settings, [text.removeprefix("data.") for text in assignments], problems)
    if "source" in settings:
        problems.add(("source",), "conflict", "set the source with --data instead of this key")
    else:
        # All sources with files have the same keys, so check them as a folder.
        checked_as = source if source in BUILT_IN_SOURCES else "folder"
        root = None if source in BUILT_IN_SOURCES else source
        check(Data, {"source": checked_as, "root": root, **settings}, (), problems)
    problems.raise_if_any()
    return settings


def build(name: str, document: dict[str, Any], terms: Terms, problems: Problems) -> Recipe | None:
    """Check a whole document and build its recipe.

    Args:
        name: the name of the study.
        document: the recipe as written, with overrides applied.
        terms: known loss terms, see `load`.
        problems: collects every problem of the document, each with its key.

    Returns:
        the recipe; None if there are problems.
    """
    checked = check(Document, document, (), problems)
    # Build the arms even if other parts have problems, so that one check finds all problems.
    builder = ArmBuilder(document, terms, problems)
    builder.build()
    if checked is None or problems.entries:
        return None
    return Recipe(
        name=name,
        data=checked.data,
        teachers=[arm for arms in builder.teachers.values() for arm in arms],
        students=builder.students,
        seeds=checked.seeds,
        check_teachers=checked.check_teachers,
        analysis=checked.analysis,
        source=document,
    )


def _find_files_beside(recipe: Path, document: dict[str, Any]) -> None:
    """Look for relative paths of a document beside the recipe, too, and put found ones in place.

    Paths are relative to the current folder, or else to the folder of the recipe.
    """
    sections = [document.get("teachers"), document.get("students")]
    arms = [arm for arms in sections if isinstance(arms, dict) for arm in arms.values()]
    for mapping, key in [(document.get("data"), "root"), *((arm, "checkpoint") for arm in arms)]:
        value = mapping.get(key) if isinstance(mapping, dict) else None
        if not isinstance(value, str) or Path(value).expanduser().exists():
            continue
        beside = recipe.parent / value
        if beside.exists():
            mapping[key] = str(beside)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 ({error}); save it as UTF-8"
    raise UserError(f"cannot read the recipe {path}: {reason}")


def _build_or_raise(
    name: str, document: dict[str, Any], terms: Terms, problems: Problems
) -> Recipe:
    recipe = build(name, document, terms, problems)
    problems.raise_if_any()
    assert recipe is not None, "a recipe without problems is built"
    return recipe
