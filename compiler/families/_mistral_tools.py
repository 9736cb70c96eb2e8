"""How Mistral's models are told of functions, by the version of their tokenizer.

Source: mistral_common.tokens.tokenizers.instruct, InstructTokenizerV7, V11 and V13.
"""

from collections.abc import Mapping

from ...targets.manifest import ToolFormat

_AVAILABLE = "[AVAILABLE_TOOLS]{tools}[/AVAILABLE_TOOLS]"
_RESULT_OF_CALL = "[TOOL_RESULTS]{id}[TOOL_CONTENT]{content}[/TOOL_RESULTS]"

_FORMATS: Mapping[int, ToolFormat] = {
    7: ToolFormat(
        available=_AVAILABLE,
        before="last",
        calls="[TOOL_CALLS][{calls}]",
        call='{"name": "{name}", "arguments": {arguments}, "id": "{id}"}',
        call_without_id='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
        result=_RESULT_OF_CALL,
        results_in_order=False,
    ),
    11: ToolFormat(
        available=_AVAILABLE,
        before="last",
        calls="{calls}",
        call="[TOOL_CALLS]{name}[CALL_ID]{id}[ARGS]{arguments}",
        call_without_id="[TOOL_CALLS]{name}[ARGS]{arguments}",
        between="",
        result=_RESULT_OF_CALL,
        results_in_order=True,
    ),
    13: ToolFormat(
        available=_AVAILABLE,
        before="first",
        calls="{calls}",
        call="[TOOL_CALLS]{name}[ARGS]{arguments}",
        call_without_id="[TOOL_CALLS]{name}[ARGS]{arguments}",
        between="",
        result="[TOOL_RESULTS]{content}[/TOOL_RESULTS]",
        results_in_order=True,
    ),
}


def tool_format(version: int) -> ToolFormat | None:
    """The templates of a version of the tokenizer; None of one that is not known."""
    return _FORMATS.get(version)
