"""Damage files as a faulty disk or a killed process would."""

from pathlib import Path


def flip_bit(path: Path, position: float = 0.5) -> None:
    """Change one bit of a file, at a fraction of its length."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 4
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    """Remove the second half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def folder_content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files under a folder, by relative path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
