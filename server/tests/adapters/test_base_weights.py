"""Adapters whose file repeats weights of the base, as PEFT saves them by default beside LoRA on lm_head."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_files as build
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from shard_driver import make_engine, tiny_model

from lorikeet_server.adapters.library import AdapterLibrary
from lorikeet_server.adapters.staged import StagedAdapter
from lorikeet_server.errors import InvalidAdapterError, SourceUnavailableError
from lorikeet_server.weights import WeightSource
from lorikeet_server.weights.safetensors import SafetensorsSource

HEAD = "base_model.model.lm_head.base_layer.weight"
EMBEDDING = "base_model.model.model.embed_tokens.weight"
WEIGHTS = "adapter_model.safetensors"
Case = tuple[AdapterLibrary, Path, Any]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A library over a tiny model, where its adapters are, and the model."""
    model = tiny_model(tmp_path / "model", tie_word_embeddings=request.param)
    engine = make_engine(tmp_path / "model", tmp_path / "store", roots=[tmp_path / "adapters"])
    return engine.library, tmp_path / "adapters", model


def save(model: Any, directory: Path, *targets: str, **how: Any) -> None:
    """An adapter of these modules, with random weights, saved by PEFT."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=list(targets), init_lora_weights=False)
    torch.manual_seed(5)
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(str(directory), **how)
    wrapped.unload()


def change(directory: Path, name: str, to: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors[name] = to(tensors[name]).contiguous()
    save_file(tensors, directory / WEIGHTS)


def stage(library: AdapterLibrary, name: str) -> StagedAdapter:
    return library.stage(build.fetch(library, name))


def test_what_peft_saves_by_default_is_the_same_adapter(served: Case) -> None:
    library, root, model = served
    save(model, root / "plain", "lm_head", "q_proj", save_embedding_layers=False)
    save(model, root / "default", "lm_head", "q_proj")
    assert HEAD in load_file(root / "default" / WEIGHTS)
    plain, default = stage(library, "plain"), stage(library, "default")
    assert torch.equal(plain.matrices.memory, default.matrices.memory) and build.adapted(plain) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_saved_though_nothing_targets_them(served: Case, dtype: torch.dtype) -> None:
    """In the adapter's own dtype, to which the base is rounded."""
    library, root, model = served
    save(model, root / "a", "q_proj", save_embedding_layers=True)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(root / "a" / WEIGHTS).items()}
    assert {EMBEDDING, "base_model.model.lm_head.weight"} <= tensors.keys()
    save_file(tensors, root / "a" / WEIGHTS)
    assert build.adapted(stage(library, "a")) == 3


@pytest.mark.parametrize("at", [0, -1])
def test_one_number_that_differs_is_refused(served: Case, at: int) -> None:
    library, root, model = served

    def nudged(weight: torch.Tensor) -> torch.Tensor:
        weight.view(-1)[at] = weight.view(-1)[at].nextafter(torch.tensor(9.0))
        return weight

    save(model, root / "a", "lm_head")
    change(root / "a", HEAD, nudged)
    with pytest.raises(InvalidAdapterError, match=rf"{HEAD} differs .* save_embedding_layers=False"):
        stage(library, "a")
    assert library.staged.bytes_held == 0


def test_weights_in_another_precision_are_refused(served: Case) -> None:
    """PEFT would compute with the rounded ones."""
    library, root, model = served
    save(model, root / "a", "lm_head")
    change(root / "a", HEAD, lambda weight: weight.bfloat16().float())
    with pytest.raises(InvalidAdapterError, match="another precision"):
        stage(library, "a")


def test_another_vocabulary_is_refused_before_it_is_copied(served: Case) -> None:
    library, root, model = served
    save(model, root / "a", "q_proj", save_embedding_layers=True)
    change(root / "a", EMBEDDING, lambda weight: weight[:-1])
    with pytest.raises(
        InvalidAdapterError, match=r"\[198, 48\] and this model's model.embed_tokens \[199, 48\]"
    ):
        build.fetch(library, "a")


def test_other_base_weights_are_refused(served: Case) -> None:
    library, root, model = served
    save(model, root / "a", "q_proj")
    base = model.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    save_file(load_file(root / "a" / WEIGHTS) | {name: base}, root / "a" / WEIGHTS)
    with pytest.raises(InvalidAdapterError, match="only those of lm_head and embed_tokens"):
        build.fetch(library, "a")


def test_an_embedding_without_its_lora_is_refused_as_one_with_it(served: Case) -> None:
    """Some tools drop what a server cannot use; what is left is another adapter."""
    library, root, model = served
    save(model, root / "a", "embed_tokens", "q_proj", save_embedding_layers=False)
    with pytest.raises(InvalidAdapterError, match=r"lora_embedding_A .* LoRA on an embedding"):
        build.fetch(library, "a")
    tensors = load_file(root / "a" / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if "embedding" not in name}
    save_file(kept, root / "a" / WEIGHTS)
    with pytest.raises(InvalidAdapterError, match=r"json targets model\.embed_tokens: LoRA on an embedding"):
        build.fetch(library, "a")


def test_all_linear_means_no_embedding(served: Case) -> None:
    library, root, model = served
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    wrapped.save_pretrained(str(root / "a"))
    wrapped.unload()
    path = root / "a/adapter_config.json"  # PEFT writes the names that it found
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": "all-linear"}))
    assert build.adapted(stage(library, "a")) == 3 * 7


def test_the_base_is_read_once_and_in_parts(served: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    library, root, model = served
    reads: list[int] = []
    load = SafetensorsSource.load

    def counted(source: WeightSource, name: str, part: Any = None) -> torch.Tensor:
        reads.append(part.stop - part.start)
        return load(source, name, part)

    monkeypatch.setattr(SafetensorsSource, "load", counted)
    monkeypatch.setattr("lorikeet_server.adapters.base_weights._READ", 100 * 48)
    for name, module in (("a", "q_proj"), ("b", "k_proj")):
        save(model, root / name, "lm_head", module)
        stage(library, name)
    assert reads == [100, 99]


def test_a_base_that_changed_on_disk_is_compared_with_nothing(served: Case, tmp_path: Path) -> None:
    library, root, model = served
    save(model, root / "a", "lm_head")
    file = tmp_path / "model/model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(SourceUnavailableError, match="have changed since the server started"):
        stage(library, "a")
    file.unlink()
    with pytest.raises(SourceUnavailableError, match="cannot be read any more"):
        stage(library, "a")
