"""Members of transformers beside its public API are looked for at import."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import transformers
from transformers import masking_utils
from transformers.models.llama import modeling_llama
from transformers.utils import generic, output_capturing

import himap
from himap.transformers_api import check_transformers


def test_this_version_has_it_all() -> None:
    """The installed transformers passes, and looking changes no random state and no default."""
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_default_device()

    check_transformers()

    after = torch.get_rng_state(), torch.get_default_dtype(), torch.get_default_device()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (output_capturing, "capture_outputs", "transformers.utils.output_capturing.capture_outputs"),
        (generic, "merge_with_config_defaults", "transformers.utils.generic.merge_with_config_defaults"),
        (modeling_llama, "rotate_half", "transformers.models.llama.modeling_llama.rotate_half"),
        (modeling_llama.LlamaPreTrainedModel, "_can_record_outputs", "LlamaModel._can_record_outputs"),
    ],
)
def test_a_missing_name_is_named(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, said: str) -> None:
    """A private name that is gone is named, with the version that lacks it."""
    monkeypatch.delattr(module, name)
    if name == "_can_record_outputs":  # the base class has an empty one
        monkeypatch.delattr(transformers.PreTrainedModel, name, raising=False)

    with pytest.raises(ImportError, match=rf"transformers {transformers.__version__}, which lacks .*{said}"):
        check_transformers()


def test_a_missing_parameter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword that create_causal_mask takes no longer is named."""

    def create_causal_mask(config: Any, input_embeds: Any, attention_mask: Any, past_key_values: Any) -> None: ...

    monkeypatch.setattr(masking_utils, "create_causal_mask", create_causal_mask)

    with pytest.raises(ImportError, match=r"create_causal_mask\(inputs_embeds=\), .*create_causal_mask\(position_ids="):
        check_transformers()


def test_a_missing_attribute_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attribute that LlamaAttention sets on itself is looked for on an instance."""
    build = modeling_llama.LlamaAttention.__init__

    def without_scaling(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        del self.scaling, self.q_proj

    monkeypatch.setattr(modeling_llama.LlamaAttention, "__init__", without_scaling)

    with pytest.raises(ImportError, match=r"LlamaAttention\(\)\.q_proj, LlamaAttention\(\)\.scaling$"):
        check_transformers()


def test_importing_himap_checks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one clear message comes out of `import himap` itself, and names all that is missing."""
    monkeypatch.delattr(output_capturing, "capture_outputs")
    monkeypatch.delattr(generic, "merge_with_config_defaults")

    with pytest.raises(ImportError, match=r"which lacks .*merge_with_config_defaults, .*capture_outputs"):
        importlib.reload(himap)
