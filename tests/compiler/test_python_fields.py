import subprocess
import sys
from typing import Any

from flashgen.field_members import input_members
from flashgen.python_fields import field_statement
from flashgen.python_layout import LINE_LENGTH, import_list
from flashgen.resolved import ResolvedField
from flashgen.types import parse_type
from flashgen.user_text import UserText

TEXT = UserText("text")
SHAPES = (
    "literal[{}]",
    "literal[a, {}]",
    "literal[a, {}] | null",
    "literal[{}] | null",
    "str | literal[{}]",
    "list[literal[a, {}]]",
    "list[literal[{}]] | null",
    "dict[str, literal[{}]]",
    "list[list[literal[a, {}]] | int]",
)


def field(type_: str, **attributes: Any) -> ResolvedField:
    """A declared field called `field`."""
    values: dict[str, Any] = dict.fromkeys(ResolvedField._fields)
    values |= {
        "name": "field",
        "type": parse_type(type_),
        "optional": False,
        "has_default": False,
        "has_example": False,
    }
    return ResolvedField(**(values | attributes))


def statement(declared: ResolvedField) -> str:
    return field_statement(declared, input_members(declared, "openai.completions"))


def test_statements_of_every_length_are_formatted() -> None:
    """Around the end of the line, every shape of type with every kind of value is what `ruff format` would write."""
    variants: list[dict[str, Any]] = [
        {},
        {"optional": True},
        {"description": TEXT},
        {"optional": True, "description": TEXT},
        {"min_length": 1, "max_length": 2},
        {"has_default": True, "default": TEXT},
    ]
    statements = [
        statement(field(shape.format("x" * length), **variant))
        for shape in SHAPES
        for length in range(60, 125)
        for variant in variants
    ]
    for length in range(60, 125):
        values = [
            UserText("d" * length),
            [UserText("d" * length)],
            {"k": UserText("d" * length), "l": [1, UserText("短")]},
        ]
        statements += [statement(field("str", has_default=True, default=value)) for value in values]
        statements += [statement(field("str", has_example=True, example=value)) for value in values]

    result = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--diff", "--isolated", "--config", f"line-length={LINE_LENGTH}", "-"],
        input="class Fields:\n" + "".join(statements),
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout


def test_a_plain_field_takes_one_line() -> None:
    """As somebody would write it by hand."""
    assert statement(field("list[dict] | str")) == "    field: list[dict[str, Any]] | str\n"
    assert statement(field("str", optional=True)) == "    field: str | None = None\n"
    assert statement(field("int", has_default=True, default=3)) == "    field: int = 3\n"


def test_bounds_of_one_type_stand_at_the_field() -> None:
    """With what the documentation says."""
    declared = field("str", min_length=1, description=TEXT, has_example=True, example=TEXT)

    assert statement(declared).splitlines() == [
        "    field: str = Field(",
        "        min_length=1,",
        '        description="text",',
        '        examples=["text"],',
        "    )",
    ]


def test_bounds_of_a_union_stand_at_the_types_they_are_about() -> None:
    """A length is no bound of a number."""
    declared = field("str | int | list[int]", min=1, min_length=2)

    assert statement(declared) == (
        "    field: Annotated[str, Field(min_length=2)] | Annotated[int, Field(ge=1)] "
        "| Annotated[list[int], Field(min_length=2)]\n"
    )


def test_allowed_values_take_the_place_of_the_type() -> None:
    """Texts, whole numbers and truth values are literals."""
    assert statement(field("str", enum=(TEXT, UserText("b")))) == '    field: Literal["text", "b"]\n'
    assert statement(field("int | null", enum=(1, 2, None))) == "    field: Literal[1, 2] | None\n"


def test_imports_are_sorted_as_people_count() -> None:
    """`v2` comes before `v10`, as isort has it; what no line holds is exploded."""
    assert import_list(["v10", "chat", "v2"], "from api.routes import") == "from api.routes import chat, v2, v10"
    assert import_list(["a" * 60, "b" * 60], "from x import") == f"from x import (\n    {'a' * 60},\n    {'b' * 60},\n)"
