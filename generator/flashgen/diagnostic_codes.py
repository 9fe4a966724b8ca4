"""Every code of a diagnostic. Codes are stable: one is never given another meaning, and never reused.

FG0 the file, FG1 structure, FG2 meaning, FG4 files beside the spec.
"""

CODES: dict[str, str] = {
    "FG001": "The file is not UTF-8. Save it as UTF-8; a byte order mark is allowed.",
    "FG002": "The file holds a control character, or a NUL byte, as binary files do.",
    "FG003": "The file is larger than 1 MiB.",
    "FG004": "The file is not YAML. Only the first such error of a file can be found.",
    "FG005": "A mapping has the same key twice. YAML forbids it; most readers silently take the last one.",
    "FG006": "A value has a tag, such as `!!str` or `!include`. A spec is plain data.",
    "FG007": "A mapping has the merge key `<<`, which YAML 1.2 does not know. An alias for a whole value works.",
    "FG008": "An alias has no anchor above it, stands inside its own anchor, or aliases expand to too many values.",
    "FG009": "The file nests deeper than 64 levels, or holds more than 200,000 values.",
    "FG010": "The file holds a second YAML document.",
    "FG011": "A key is not a text. Keys such as `1`, `true` or `~` need quotes; `on` and `yes` are texts.",
    "FG012": "A number is infinite, not a number, or far too long.",
    "FG013": "The file holds no spec.",
    "FG101": "A key is not part of the language. Every object is closed; keys that begin with `x-` are free.",
    "FG102": "A key is missing that the language, or this spec, needs.",
    "FG103": "A name refers to a model or a server that the spec does not define.",
    "FG104": "A value has the wrong type.",
    "FG105": "A value is not one of those allowed.",
    "FG106": "A number, or the length of a text or list, is out of range.",
    "FG107": "A text does not have the form that its key asks for.",
    "FG108": "A word of the language whose capability this version of flashgen does not have yet.",
    "FG201": "Two apis answer the same requests, or an api takes a path of the API server's own.",
    "FG202": "Two things have one name, some only after names became DNS labels and module names.",
    "FG203": "Several servers could answer an api, and neither `server` nor the models' types say which.",
    "FG204": "Neither the path, nor `protocol`, nor the declared fields say what an api speaks.",
    "FG205": "An api's method, or the task of its server's model, does not go with its protocol.",
    "FG206": "Two settings contradict each other, or one changes nothing beside the other.",
    "FG207": "An entry of `models` is used by no server and by no other model, so it would change nothing.",
    "FG208": "A name is no name for a package or a file, or it is that of another part of the project.",
    "FG210": "An item of a field list can be read in two ways, or in none.",
    "FG211": "The name of a field means something else in Python or on a pydantic model.",
    "FG212": "The type of a field is not a type.",
    "FG213": "An attribute of a field contradicts its type or another attribute.",
    "FG214": "A declared field is not one of the protocol's, or its type is not a narrower one.",
    "FG220": "A device, or a demand on a card, contradicts the number of cards.",
    "FG221": "Two processes of the service would listen on one port.",
    "FG230": "An environment variable begins with `FLASHGEN_`; those are set by flashgen itself.",
    "FG231": "A text holds a control character, or a line break where none can be.",
    "FG232": "A chat template is not valid Jinja.",
    "FG400": "A folder with weights that the spec names is not there, or no worker could load it.",
    "FG401": "A model, or those that a server loads at start, can never fit its memory: weights, buffers and KV cache.",
    "FG402": "A model that guesses for another one has other tokens than that one.",
}


def reference_page() -> str:
    """`docs/reference/diagnostics.md`."""
    rows = [f"| {code} | {meaning} |" for code, meaning in CODES.items()]
    head = ["# Diagnostics", "", "What each code means. Codes are stable.", "", "| Code | Meaning |", "| --- | --- |"]
    return "\n".join([*head, *rows]) + "\n"
