"""Whether a chat template is Jinja that transformers could render."""


def template_problem(template: str) -> str | None:
    """What keeps `template` from being parsed, with the extensions that transformers gives to chat templates."""
    from jinja2 import Environment, TemplateSyntaxError, nodes  # deferred: most specs have no template
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        """`{% generation %}` marks the assistant's own tokens for training."""

        tags = {"generation"}  # noqa: RUF012  # an interface of jinja2

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Environment(extensions=["jinja2.ext.loopcontrols", Generation], autoescape=False)  # only parses
    try:
        environment.parse(template)
    except TemplateSyntaxError as error:
        return f"{error.message or 'a syntax error'} (line {error.lineno} of the template)"
    except RecursionError:
        return "it nests too deeply"
    return None
