"""Loads a catalog from a file, a text or a stored document, or reports all its errors with their places."""

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from billing_svc.catalog import model, references

# The shipped catalogs have 1 to 4 KiB. Parsing takes linear time, a few seconds for this size.
FILE_BYTES_MAX = 256 * 1024
# A catalog has 7 levels, down to a value in a pay-as-you-go limit.
DEPTH_MAX = 16
# A longer integer is wrong in every field; past 4,300 digits int() would raise.
INTEGER_DIGITS_MAX = 30
# Some screens full; an author with more errors corrects these first.
ERRORS_MAX = 100
# A name that needs no quotes in a path.
_SIMPLE = re.compile(r"[A-Za-z0-9_-]{1,70}", re.ASCII)
_YAML = "tag:yaml.org,2002:"

_Path = tuple[str | int, ...]


class CatalogError(Exception):
    """A catalog that cannot be used. `errors` are lines `file:line: path: message`, in the file's order."""

    def __init__(self, errors: Iterable[str]) -> None:
        # Errors quote the file and may be written to a terminal, so control characters are replaced.
        self.errors = tuple("".join(sign if sign.isprintable() else "?" for sign in error) for error in errors)
        super().__init__("\n".join(self.errors))


class _Located(NamedTuple):
    """A broken rule with its line; None if there is no file."""

    line: int | None
    path: _Path
    message: str

    def shown(self, source: str) -> str:
        place = source if self.line is None else f"{source}:{self.line}"
        return f"{place}: {_shown_path(self.path)}: {self.message}"


def load_file(path: Path) -> model.Catalog:
    """Load a YAML file; raises CatalogError."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CatalogError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(content) > FILE_BYTES_MAX:
        raise CatalogError([f"{path}: is larger than {FILE_BYTES_MAX // 1024} KiB"])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CatalogError([f"{path}:{line}: is not UTF-8"]) from error
    return load_text(text, str(path))


def load_text(text: str, source_name: str) -> model.Catalog:
    """Load YAML; raises CatalogError, whose lines begin with `source_name`."""
    if len(text.encode("utf-8", "surrogatepass")) > FILE_BYTES_MAX:
        raise CatalogError([f"{source_name}: is larger than {FILE_BYTES_MAX // 1024} KiB"])
    document = _Document()
    try:
        node = _compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        problem = " ".join(str(error.problem or error.context or "syntax error").split())
        raise CatalogError([f"{source_name}{line}: is not accepted as YAML: {problem}"]) from error
    except YAMLError as error:
        raise CatalogError([f"{source_name}: is not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(node, MappingNode):
        raise CatalogError([f"{source_name}:1: the top level must be a mapping"])
    plain = document.read(node, ())
    return _validated(plain, source_name, document)


def load_document(document: Mapping[str, object], source_name: str = "stored catalog") -> model.Catalog:
    """Load a document that `model_dump(mode="json", by_alias=True)` returned; raises CatalogError."""
    return _validated(document, source_name, _Document())


class _Composer(Composer):
    """A composer that refuses anchors and aliases: with them, a few lines can expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 - the library's signature
        event = self.parser.peek_event()
        if event.anchor is not None:
            raise ComposerError(None, None, "anchors and aliases are refused; repeat the text", event.start_mark)
        return super().compose_node(parent, index)


def _compose(text: str) -> Node | None:
    """Return the tree of nodes with their lines. No objects are constructed, so tags have no effect."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    yaml.max_depth = DEPTH_MAX
    node: Node | None = yaml.compose(text)
    return node


@dataclass(slots=True)
class _Document:
    """Converts a tree of nodes to plain values; keeps the line of every path, and the nodes that it cannot convert."""

    lines: dict[_Path, int] = field(default_factory=dict)
    problems: list[_Located] = field(default_factory=list)

    def read(self, node: Node, path: _Path) -> object:
        """Return the plain value of a node."""
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._read_scalar(node.value, node.tag or "", path)

    def _read_mapping(self, node: MappingNode, path: _Path) -> dict[str, object]:
        plain: dict[str, object] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode) or key.tag != f"{_YAML}str":
                shown = key.value if isinstance(key, ScalarNode) else "a list or mapping"
                self.problems.append(_Located(line, path, f"{references.quoted(shown)} cannot be a key; quote it"))
            elif key.value in plain:
                first = self.lines[*path, key.value]
                self.problems.append(_Located(line, (*path, key.value), f"duplicate key, first on line {first}"))
            else:
                self.lines[*path, key.value] = line
                plain[key.value] = self.read(value, (*path, key.value))
        return plain

    def _read_scalar(self, text: str, tag: str, path: _Path) -> object:
        match tag.removeprefix(_YAML):
            case "str" | "timestamp":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() in {"true", "yes", "on"}
            case "int":
                digits = text.replace("_", "")
                if len(digits) <= INTEGER_DIGITS_MAX and digits.lstrip("+-").isdecimal():
                    return int(digits)
                message = f"{references.quoted(text)} must be at most {INTEGER_DIGITS_MAX} decimal digits"
            case "float":
                # The model refuses every float, and says whether the field takes an integer or a quoted amount.
                return 0.5
            case _:
                message = f"the tag {references.quoted(tag)} is refused"
        self.problems.append(_Located(self.lines[path], path, message))
        return None


def _validated(plain: object, source: str, document: _Document) -> model.Catalog:
    """Return the catalog, or raise CatalogError with all problems of the document, its names and the model."""
    problems = list(document.problems)
    catalog = None
    # Validated as JSON, so that the same strict rules apply to a file and to a stored version.
    try:
        catalog = model.Catalog.model_validate_json(json.dumps(plain))
    except pydantic.ValidationError as error:
        problems += [_located(document, *_explained(one)) for one in error.errors(include_url=False)]
        if isinstance(plain, Mapping):
            problems += [_located(document, path, message) for path, message in references.problems(plain)]
    # A value that could not be read is reported once, and not also as missing.
    unreadable = {problem.path for problem in document.problems}
    kept = {problem: None for problem in problems if problem in document.problems or problem.path not in unreadable}
    if catalog is not None and not kept:
        return catalog
    lines = [problem.shown(source) for problem in sorted(kept, key=lambda problem: problem.line or 0)]
    if len(lines) > ERRORS_MAX:
        lines[ERRORS_MAX:] = [f"{source}: and {len(lines) - ERRORS_MAX} more"]
    raise CatalogError(lines)


def _located(document: _Document, path: _Path, message: str) -> _Located:
    """Return the problem with the line of its path, or of the nearest enclosing path that is in the file."""
    around = (path[:length] for length in range(len(path), -1, -1))
    return _Located(next((document.lines[part] for part in around if part in document.lines), None), path, message)


def _explained(error: Any) -> tuple[_Path, str]:  # noqa: ANN401 - pydantic_core.ErrorDetails, whose ctx is untyped
    """Return the path of a pydantic error, and its message in the catalog's terms."""
    path: _Path = tuple(part for part in error["loc"] if part != "[key]")
    context: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "catalog":
            message = error["msg"]
        case "missing":
            message = "missing"
        case "extra_forbidden":
            message = f"unknown key{references.did_you_mean(str(path[-1]), _keys_at(path[:-1]))}"
        case "int_type" | "int_from_float":
            message = "must be a whole number"
        case "greater_than_equal":
            message = f"must be >= {context['ge']}"
        case "less_than_equal":
            message = f"must be <= {context['le']}"
        case "string_pattern_mismatch":
            message = f"must match {context['pattern']}"
        case "model_type" | "mapping_type" | "dict_type":
            message = "must be a mapping"
        case "tuple_type":
            message = "must be a list"
        case _:
            message = error["msg"].replace("Input should", "must").replace("String should", "must")
    return path, message


def _keys_at(path: _Path) -> Iterator[str]:
    """Yield the keys that the model knows at a path."""
    annotation: Any = model.Catalog
    for part in path:
        if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
            fields = annotation.model_fields
            annotation = next(one.annotation for name, one in fields.items() if part == (one.alias or name))
        elif get_origin(annotation) is Mapping:
            annotation = get_args(annotation)[1]
        if get_origin(annotation) is types.UnionType:
            annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield from (one.alias or name for name, one in annotation.model_fields.items())


def _shown_path(path: _Path) -> str:
    """Write a path as plans.free.limits; a part that is not a name is quoted, so that the path is a single line."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += f".{part if _SIMPLE.fullmatch(part) else references.quoted(part)}"
    return shown.removeprefix(".") or "top level"
