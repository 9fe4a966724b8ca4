"""The filters of blueprints, by name. `UserText` leaves a template only through one that quotes."""

from collections.abc import Callable
from typing import Any

from flashgen import deployment, examples, headers, python_fields, python_layout, quantities, quoting, route_classes

FILTERS: dict[str, Callable[..., Any]] = {
    "generated": headers.generated,
    # Values as source of other languages.
    "py": quoting.py,
    "yaml": quoting.yaml,
    "compose": quoting.compose,
    "k8s_env": quoting.k8s_env,
    "json": quoting.json_value,
    "json_text": quoting.json_text,
    "toml": quoting.toml,
    "sh": quoting.sh,
    "make": quoting.make,
    "md": quoting.md,
    "md_code": quoting.md_code,
    "comment": quoting.comment,
    "file_name": quoting.file_name,
    "docstring": quoting.docstring,
    # Numbers with units.
    "k8s_quantity": quantities.k8s_quantity,
    "cpu_quantity": quantities.cpu_quantity,
    "mebibytes": quantities.mebibytes,
    "human_bytes": quantities.human_bytes,
    "capability": quantities.capability,
    # compose and Kubernetes.
    "object_name": deployment.object_name,
    "failures_within": deployment.failures_within,
    "rollout_seconds": deployment.rollout_seconds,
    "slowest_start": deployment.slowest_start,
    "with_fact": deployment.with_fact,
    "all_secrets": deployment.all_secrets,
    "weights_variable": deployment.weights_variable,
    "compose_bytes": deployment.compose_bytes,
    "cpu_shares": deployment.cpu_shares,
    "card_terms": deployment.card_terms,
    # Declared fields as Python, and bodies that satisfy them.
    "input_fields": python_fields.input_fields,
    "output_fields": python_fields.output_fields,
    "request_class": route_classes.request_class,
    "response_class": route_classes.response_class,
    "typing_imports": python_fields.typing_imports,
    "pydantic_imports": python_fields.pydantic_imports,
    "import_list": python_layout.import_list,
    "py_lines": python_layout.lines_of,
    "example_body": examples.example_body,
    "required_field": examples.required_field,
    "can_stream": examples.can_stream,
    "must_stream": examples.must_stream,
}
