"""From a `Document` to a `ProjectSpec`, or every `Diagnostic` at once.

First the schema decides on structure, then the rules in `flashgen.validation` on meaning; parts whose structure is
wrong are left out there, so that one mistake is not reported twice.
"""

from flashgen.document import Document
from flashgen.errors import SpecError
from flashgen.spec import ProjectSpec
from flashgen.validation.api_rules import check_apis
from flashgen.validation.builder import build_spec
from flashgen.validation.facts import gather_facts
from flashgen.validation.field_forms import with_fields_as_mappings
from flashgen.validation.field_rules import check_fields
from flashgen.validation.model_rules import check_models
from flashgen.validation.name_rules import check_names
from flashgen.validation.problems import Problems
from flashgen.validation.server_rules import check_servers
from flashgen.validation.speculation_rules import check_speculation
from flashgen.validation.structure import check_structure
from flashgen.validation.text_rules import check_texts

_RULES = (check_names, check_apis, check_fields, check_models, check_speculation, check_servers)


def validate(document: Document) -> ProjectSpec:
    """The spec that `document` holds; raises `SpecError` with everything that is wrong."""
    problems = Problems(document)
    problems.document = with_fields_as_mappings(document, problems)
    data = problems.document.data
    if not check_structure(data, problems) or not isinstance(data, dict):
        raise _error(problems)
    check_texts(data, problems)
    facts = gather_facts(data, problems)
    for rule in _RULES:
        rule(facts, problems)
    if problems.diagnostics:
        raise _error(problems)
    return build_spec(facts, problems)


def _error(problems: Problems) -> SpecError:
    return SpecError(problems.diagnostics, path=problems.document.path, text=problems.document.text)
