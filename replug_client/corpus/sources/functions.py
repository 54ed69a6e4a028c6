"""Code cut at its functions with tree-sitter, so that the pieces laid end to end are the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from replug_client.errors import OptionError

LANGUAGE_OF_SUFFIX = {
    ".py": "python",
    ".js": "javascript",
    ".jsx": "javascript",
    ".mjs": "javascript",
    ".cjs": "javascript",
    ".java": "java",
    ".go": "go",
    ".rb": "ruby",
    ".php": "php",
}
LANGUAGES = tuple(dict.fromkeys(LANGUAGE_OF_SUFFIX.values()))


@dataclass(frozen=True, slots=True)
class _Grammar:
    """What a language's tree calls its functions, what may hold them, and what belongs to one before it."""

    functions: frozenset[str]
    holders: frozenset[str]
    before: frozenset[str] = frozenset({"comment"})


def _grammar(functions: str, holders: str, before: str = "comment") -> _Grammar:
    return _Grammar(*(frozenset(names.split()) for names in (functions, holders, before)))


_GRAMMARS = {
    "python": _grammar("function_definition", "class_definition"),
    "javascript": _grammar(
        "function_declaration generator_function_declaration method_definition",
        "class_declaration class",
    ),
    "java": _grammar(
        "method_declaration constructor_declaration compact_constructor_declaration",
        "class_declaration interface_declaration enum_declaration record_declaration",
        "line_comment block_comment",
    ),
    "go": _grammar("function_declaration method_declaration", ""),
    "ruby": _grammar("method singleton_method", "class module singleton_class"),
    "php": _grammar(
        "function_definition method_declaration",
        "class_declaration interface_declaration trait_declaration enum_declaration namespace_definition",
    ),
}
# Around a function, and part of it: decorators, `export`, `const f = (x) => ...`.
_WRAPPERS = frozenset(
    {"decorated_definition", "export_statement", "lexical_declaration", "variable_declaration"}
)
_ARROWS = frozenset({"arrow_function", "function_expression", "generator_function"})


@dataclass(frozen=True, slots=True)
class CodePiece:
    """A stretch of a source file.

    Attributes:
        text: Its characters.
        line: The line that it begins on, from 1.
        name: Of the function, with the classes around it (``Tree.insert``); empty for code between functions.
    """

    text: str
    line: int
    name: str


def cut_functions(text: str, language: str) -> list[CodePiece] | None:
    """Functions and methods, and what stands between them, in the order of the file.

    A function has the decorators and the comments directly above it; a function inside a function belongs to that
    one; closing brackets that stand alone belong to the function before them. The pieces laid end to end are
    ``text``, but for pieces of white space only, which are left out.

    Args:
        text: A source file.
        language: One of :data:`LANGUAGES`.

    Returns:
        The pieces; None where the file does not parse.

    Raises:
        OptionError: tree-sitter, or the language's grammar, is not installed.
    """
    source = text.encode()
    root = _parser(language).parse(source).root_node
    if root.has_error:
        return None
    pieces: list[CodePiece] = []
    line = 1
    reached = 0
    for start, stop, name in [*_functions(root, _GRAMMARS[language], source), (len(source), len(source), "")]:
        for begin, end, called in ((reached, start, ""), (start, stop, name)):
            piece = source[begin:end].decode()
            if piece.strip() and pieces and not any(map(str.isalnum, piece)):
                pieces[-1] = replace(pieces[-1], text=pieces[-1].text + piece)
            elif piece.strip():
                pieces.append(CodePiece(piece, line, called))
            line += piece.count("\n")
        reached = stop
    return pieces


def without_python_docstring(code: str) -> str | None:
    """A Python function without its docstring; None where it does not parse, or holds nothing else."""
    source = code.encode()
    root = _parser("python").parse(source).root_node
    if root.has_error or not root.named_children:
        return None
    function = root.named_children[0]
    function = function.child_by_field_name("definition") or function
    body = function.child_by_field_name("body")
    first = body.named_children[0] if body is not None and body.named_children else None
    if first is None or first.type != "expression_statement" or first.named_children[0].type != "string":
        return code
    if len(body.named_children) == 1:
        return None
    start, stop = _whole_lines(source, first.start_byte, first.end_byte)
    return (source[:start] + source[stop:]).decode()


@cache
def _parser(language: str) -> Any:
    try:
        import tree_sitter

        grammar = __import__(f"tree_sitter_{language}")
    except ModuleNotFoundError as error:
        raise OptionError(
            f"cutting {language} at its functions needs {error.name}: pip install 'replug[data]', or give --by lines"
        ) from error
    # Without its opening tag a PHP file is text, to the one grammar; to the other, the tag is an error.
    load: Callable[[], Any] = grammar.language_php if language == "php" else grammar.language
    return tree_sitter.Parser(tree_sitter.Language(load()))


def _functions(root: Any, grammar: _Grammar, source: bytes) -> Iterator[tuple[int, int, str]]:
    """Start, stop and name of each outermost function, in bytes and in order; they do not overlap."""
    waiting = [(root, "")]
    reached = 0
    while waiting:
        node, prefix = waiting.pop()
        function = _function_in(node, grammar)
        if function is not None:
            start, stop = _whole_lines(source, _with_comments(node, grammar, source), node.end_byte)
            start = max(start, reached)
            if start < stop:
                yield start, stop, prefix + _name(function)
                reached = stop
            continue
        if node.type in grammar.holders:
            prefix = f"{prefix}{_name(node)}."
        waiting.extend((child, prefix) for child in reversed(node.named_children))


def _function_in(node: Any, grammar: _Grammar) -> Any | None:
    """The function that ``node`` is or wraps; None for all else, a decorated class included."""
    if node.type in grammar.functions:
        return node
    if node.type not in _WRAPPERS:
        return None
    inner = node.child_by_field_name("definition") or node.child_by_field_name("declaration")
    if inner is not None:
        return _function_in(inner, grammar)
    declared = [child for child in node.named_children if child.type == "variable_declarator"]
    if len(declared) == 1:
        value = declared[0].child_by_field_name("value")
        return declared[0] if value is not None and value.type in _ARROWS else None
    return None


def _name(node: Any) -> str:
    name = node.child_by_field_name("name")
    return "" if name is None else name.text.decode()


def _with_comments(node: Any, grammar: _Grammar, source: bytes) -> int:
    """Where the comments begin that stand directly above a node, on lines of their own; else where it does."""
    start: int = node.start_byte
    row = node.start_point.row
    above = node.prev_named_sibling
    if above is None and node.parent is not None and node.parent.type == "body_statement":
        above = (
            node.parent.prev_named_sibling
        )  # Ruby: what stands above a class's first method is the class's
    while above is not None and above.type in grammar.before:
        # A Ruby comment or a Go line comment may have its line end in it.
        last = above.end_point.row - (above.end_point.column == 0)
        begins_line = not source[source.rfind(b"\n", 0, above.start_byte) + 1 : above.start_byte].strip()
        if last != row - 1 or not begins_line:
            break
        start, row = above.start_byte, above.start_point.row
        above = above.prev_named_sibling
    return start


def _whole_lines(source: bytes, start: int, stop: int) -> tuple[int, int]:
    """The range with the white space before it on its first line, and after it on its last, line end included."""
    first = source.rfind(b"\n", 0, start) + 1
    if not source[first:start].strip():
        start = first
    end = source.find(b"\n", stop)
    end = len(source) if end < 0 else end + 1
    return start, end if not source[stop:end].strip() else stop
