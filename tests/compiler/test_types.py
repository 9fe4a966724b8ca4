"""`flashgen.types`: the grammar of field types."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashgen.types import (
    ATOMS,
    Atom,
    DictType,
    ListType,
    LiteralType,
    Type,
    TypeSyntaxError,
    UnionType,
    format_type,
    parse_type,
)

STR, DICT, NULL = Atom("str"), Atom("dict"), Atom("null")


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        *[(atom, Atom(atom)) for atom in ATOMS],
        ("list[dict] | str", UnionType((ListType(DICT), STR))),
        ("str|null", UnionType((STR, NULL))),
        (" dict[ str , list[str|null] ] ", DictType(ListType(UnionType((STR, NULL))))),
        ("literal[billing, infra, two words]", LiteralType(("billing", "infra", "two words"))),
        ("literal[1, -2.5, a/b:c]", LiteralType(("1", "-2.5", "a/b:c"))),
    ],
)
def test_types_of_the_grammar(text: str, type_: Type) -> None:
    """Unions keep their order; spaces mean nothing."""
    assert parse_type(text) == type_


@pytest.mark.parametrize(
    ("text", "offset", "length", "words"),
    [
        ("", 0, 1, "expected a type, found the end"),
        ("string", 0, 6, "did you mean `str`"),
        ("str | Integer2", 6, 8, "is not a type"),
        ("list[", 5, 1, "found the end"),
        ("list[str", 8, 1, "expected `]`"),
        ("list[]", 5, 1, "found `]`"),
        ("list[str]]", 9, 1, "expected `|` or the end"),
        ("str |", 5, 1, "found the end"),
        ("| str", 0, 1, "found `|`"),
        ("str str", 4, 1, "expected `|` or the end"),
        ("dict[int, str]", 5, 3, "keys of a `dict` are `str`"),
        ("dict[str]", 8, 1, "expected `,`"),
        ("literal", 0, 7, "needs its values"),
        ("literal[]", 8, 1, "expected a value"),
        ("literal[a, a]", 11, 1, "`a` stands twice"),
        ("str | int | str", 12, 3, "`str` stands twice"),
        ("__import__('os')", 0, 10, "is not a type"),
        ("list[" * 9 + "str" + "]" * 9, 40, 1, "nest at most"),
        ("x" * 3000, 0, 1, "at most 2000 characters"),
    ],
)
def test_texts_that_are_no_type(text: str, offset: int, length: int, words: str) -> None:
    """The error says which characters are at fault."""
    with pytest.raises(TypeSyntaxError) as caught:
        parse_type(text)

    assert words in caught.value.message
    assert (caught.value.offset, caught.value.length) == (offset, length)


def types() -> st.SearchStrategy[Type]:
    atoms = st.sampled_from(ATOMS).map(Atom)
    words = st.text("abcXYZ019 ./:-", min_size=1, max_size=8).map(str.strip).filter(bool)
    literals = st.lists(words, min_size=1, max_size=4, unique=True).map(lambda values: LiteralType(tuple(values)))
    return st.recursive(
        atoms | literals,
        lambda inner: (
            inner.map(ListType)
            | inner.map(DictType)
            | st.lists(
                inner.filter(lambda type_: not isinstance(type_, UnionType)), min_size=2, max_size=3, unique=True
            ).map(lambda members: UnionType(tuple(members)))
        ),
        max_leaves=4,
    )


@given(types())
def test_a_formatted_type_reads_back(type_: Type) -> None:
    """`format_type` and `parse_type` are inverse."""
    assert parse_type(format_type(type_)) == type_


@given(st.text("strlidc[]|, \"'\n", max_size=60))
def test_any_text_is_a_type_or_a_syntax_error(text: str) -> None:
    """Nothing else is ever raised, and the error points into the text or just behind it."""
    try:
        parse_type(text)
    except TypeSyntaxError as error:
        offset = error.offset
    else:
        offset = 0

    assert 0 <= offset <= len(text)
