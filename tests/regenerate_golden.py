"""Rewrites the captured descriptions of the protocols and the golden trees; review the difference."""

from tests import golden_trees, openapi_capture


def main() -> None:
    """The captures first: the trees' openapi.json follow from them."""
    openapi_capture.rewrite()
    for name in golden_trees.NAMES:
        golden_trees.rewrite(name)


if __name__ == "__main__":
    main()
