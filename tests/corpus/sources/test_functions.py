"""Code cut at its functions: every language, and nothing lost."""

from __future__ import annotations

import pytest

from replug_client.corpus.sources.functions import cut_functions, without_python_docstring

SOURCES = {
    "python": (
        (
            '"""Doc."""\nimport os\n\n# above\n@deco\ndef f(x):\n    def inner(): pass\n    return "é"\n\nclass A(B):\n'
            "    y = 1\n\n    @property\n    def g(self):\n        return 1\n\n    class N:\n"
            "        def h(self): ...\n\nif True:\n    def k(): pass\nx = 1\n"
        ),
        [(4, "f"), (13, "A.g"), (18, "A.N.h"), (21, "k")],
    ),
    "javascript": (
        (
            'import a from "b";\n// doc\nfunction f(x) { return 1 }\nexport default class A {\n  /** m */\n'
            "  m(x) { return () => 2 }\n  static async s() {}\n}\nexport const g = (x) => x + 1;\n"
            "const h = function () { return 3 };\nlet z = 4, q = (y) => y;\n"
        ),
        [(2, "f"), (5, "A.m"), (7, "A.s"), (9, "g"), (10, "h")],
    ),
    "java": (
        (
            "package p;\n/** Doc. */\npublic class A {\n    int x;\n    public A() { x = 1; }\n    // line\n"
            "    @Override\n    public int get() { return x; }\n    static class B { void c() {} }\n}\n"
        ),
        [(5, "A.A"), (6, "A.get"), (9, "A.B.c")],
    ),
    "go": (
        (
            "package main\n\n// Add adds.\n// Really.\nfunc Add(a, b int) int { return a + b }\n\n"
            "type T struct{ x int }\n\nfunc (t *T) Get() int {\n\treturn t.x\n}\n"
        ),
        [(3, "Add"), (9, "Get")],
    ),
    "ruby": (
        (
            'require "x"\nmodule M\n  class A\n    # doc\n    def m(x)\n      x\n    end\n'
            "    def self.s; 1; end\n  end\nend\n"
        ),
        [(4, "M.A.m"), (8, "M.A.s")],
    ),
    "php": (
        (
            "<html>\n<?php\nnamespace N;\n/** doc */\nfunction f($x) { return 1; }\nclass A {\n  private $y = 1;\n"
            "  public function m() { return 2; }\n}\necho f(1);\n?>\n</html>\n"
        ),
        [(4, "f"), (8, "A.m")],
    ),
}


@pytest.mark.parametrize("language", SOURCES)
def test_functions_are_found_with_what_belongs_to_them_and_nothing_is_lost(language: str) -> None:
    text, functions = SOURCES[language]
    pieces = cut_functions(text, language)
    assert pieces is not None
    assert "".join(piece.text for piece in pieces) == text
    assert [(piece.line, piece.name) for piece in pieces if piece.name] == functions
    for piece in pieces:
        assert piece.text.split("\n")[0] in text.split("\n")[piece.line - 1]


def test_a_function_keeps_its_decorators_comments_and_inner_functions() -> None:
    pieces = cut_functions(SOURCES["python"][0], "python")
    assert pieces is not None
    assert pieces[1].text == '# above\n@deco\ndef f(x):\n    def inner(): pass\n    return "é"\n'
    assert pieces[0].text == '"""Doc."""\nimport os\n\n'
    assert pieces[2].text == "\nclass A(B):\n    y = 1\n\n"


@pytest.mark.parametrize("language", SOURCES)
def test_what_does_not_parse_gives_none(language: str) -> None:
    broken = "<?php function ((( {" if language == "php" else "def class function ((( {"
    assert cut_functions(broken, language) is None


def test_line_ends_of_windows_and_no_line_end_at_the_end_are_kept() -> None:
    text = "import os\r\n\r\ndef f():\r\n    pass\r\n\r\ndef g(): return '\U0001f600'"
    pieces = cut_functions(text, "python")
    assert pieces is not None
    assert [(p.name, p.text) for p in pieces] == [
        ("", "import os\r\n\r\n"),
        ("f", "def f():\r\n    pass\r\n"),
        ("g", "def g(): return '\U0001f600'"),
    ]


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ('def g(self):\n    """D.\n    x"""\n    return 1\n', "def g(self):\n    return 1\n"),
        ('@a\ndef g():\n    r"""D."""\n    return "x"', '@a\ndef g():\n    return "x"'),
        ("def g(): return 1", "def g(): return 1"),
        ('def g():\n    """Only."""\n', None),
        ("def g(:\n", None),
        ("print 'python 2'", "print 'python 2'"),
    ],
)
def test_a_docstring_is_taken_out(code: str, without: str | None) -> None:
    assert without_python_docstring(code) == without
