"""Finding the kubeconfig in what a host printed."""

from __future__ import annotations

import json

import pytest
import yaml

from model import kubeconfig
from tests.fast import recorded_run


def test_kubeconfig_is_returned_unchanged() -> None:
    """Everything in the cluster is built from it, so existing stacks must get the same text."""
    text = recorded_run.kubeconfig()
    document = yaml.safe_load(text)
    edited = [
        "# edited by hand\n" + yaml.safe_dump(dict(reversed(document.items())), sort_keys=False),
        json.dumps(document),
        yaml.safe_dump({**document, "preferences": {}}),
    ]
    for given in (text, text.rstrip("\n"), *edited):
        assert kubeconfig.printed(given) == given


@pytest.mark.parametrize("greeting", ["Welcome\n", "Welcome to: node1\n", "\n\t* 3 updates: [!]\n", "- a\n"])
def test_text_before_the_kubeconfig_is_dropped(greeting: str) -> None:
    text = recorded_run.kubeconfig()
    assert kubeconfig.printed(greeting + text) == text


@pytest.mark.parametrize(
    ("output", "reported"),
    [
        ("", "nothing instead of"),
        (" \n", "nothing instead of"),
        ("Welcome to: node1", "text that isn.t"),
        ("apiVersion: v1\nkind: Config\n", "text that isn.t"),
        (recorded_run.kubeconfig() + "Bye: bye\n", "text that isn.t"),
        (recorded_run.kubeconfig() + "bye\n", "text that isn.t"),
    ],
)
def test_other_output_is_refused_without_being_shown(output: str, reported: str) -> None:
    with pytest.raises(kubeconfig.KubeconfigError, match=reported) as caught:
        kubeconfig.printed(output)
    assert "secret-key" not in str(caught.value)
    assert "node1" not in str(caught.value)
