"""Small models of true architectures and random weights, exported from transformers by torch.

``EXPORTS``: name → a function that gives the ONNX file. Axes that published files leave free are
free. ``feeds(model, sizes)`` gives random inputs of a file for sizes of its free axes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from numpy.typing import NDArray

Array = NDArray[Any]
Axes = Mapping[str, Mapping[int, str]]
VOCABULARY = 99
TEXT = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
IMAGE = {"pixel_values": {0: "batch"}}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OPSET = 17


class _Called(torch.nn.Module):
    """A model as a function of tensors in order, which tracing wants."""

    def __init__(
        self, model: torch.nn.Module, names: Sequence[str], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.names, values, strict=True)), **self.extra())
        return tuple(found[name] for name in self.outputs)

    def extra(self) -> dict[str, Any]:
        return {"return_dict": True}


def export(
    model: torch.nn.Module, given: Mapping[str, torch.Tensor], outputs: Sequence[str], axes: Axes
) -> bytes:
    """The file of ``model`` traced with ``given``."""
    _draw(model)
    target: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Called(model.eval(), tuple(given), outputs),
            tuple(given.values()),
            target,
            input_names=list(given),
            output_names=list(outputs),
            dynamic_axes={name: dict(free) for name, free in axes.items()},
            opset_version=OPSET,
            dynamo=False,
        )
    return bytes(target.getvalue())


def _draw(model: torch.nn.Module) -> None:
    """New weights, under which activations keep their size: as transformers draws them, some
    outputs are as good as zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.normal_(0, value[0].numel() ** -0.5 * 1.3)
            elif name.endswith("weight"):
                value.uniform_(0.5, 1.5)
            else:
                value.normal_(0, 0.1)


def _text(model: type[Any], config: Any, outputs: Sequence[str]) -> bytes:
    torch.manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (2, 7))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return export(model(config), given, outputs, TEXT)


def _image(model: type[Any], config: Any, outputs: Sequence[str], side: int = 32) -> bytes:
    torch.manual_seed(0)
    return export(model(config), {"pixel_values": torch.rand(1, 3, side, side)}, outputs, IMAGE)


def bert() -> bytes:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        intermediate_size=64,
        max_position_embeddings=64,
        attn_implementation="eager",
        **SMALL,
    )
    return _text(transformers.BertModel, config, ["last_hidden_state", "pooler_output"])


def distilbert() -> bytes:
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    return _text(transformers.DistilBertForSequenceClassification, config, ["logits"])


def vit() -> bytes:
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, intermediate_size=64, attn_implementation="eager", **SMALL
    )
    return _image(transformers.ViTModel, config, ["last_hidden_state", "pooler_output"])


def resnet() -> bytes:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], layer_type="bottleneck"
    )
    return _image(transformers.ResNetForImageClassification, config, ["logits"])


def mobilenet_v2() -> bytes:
    config = transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.35)
    return _image(transformers.MobileNetV2ForImageClassification, config, ["logits"])


def detr() -> bytes:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        out_features=["stage2"],
        layer_type="basic",
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=5,
        attn_implementation="eager",
    )
    return _image(transformers.DetrForObjectDetection, config, ["logits", "pred_boxes"])


def _whisper() -> Any:
    return transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=16,
        max_source_positions=24,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        attn_implementation="eager",
    )


def whisper_encoder() -> bytes:
    torch.manual_seed(0)
    model = transformers.WhisperModel(_whisper()).get_encoder()
    given = {"input_features": torch.rand(1, 16, 48)}
    return export(model, given, ["last_hidden_state"], {"input_features": {0: "batch"}})


class _WhisperDecoder(torch.nn.Module):
    """Logits of the decoder alone."""

    def __init__(self) -> None:
        super().__init__()
        self.whisper = transformers.WhisperForConditionalGeneration(_whisper())

    def forward(self, decoder_input_ids: Any, encoder_hidden_states: Any, **_: Any) -> Any:
        found = self.whisper.model.decoder(
            input_ids=decoder_input_ids,
            attention_mask=torch.ones_like(decoder_input_ids),
            encoder_hidden_states=encoder_hidden_states,
            use_cache=False,
            return_dict=True,
        )
        return {"logits": self.whisper.proj_out(found.last_hidden_state)}


def whisper_decoder() -> bytes:
    torch.manual_seed(0)
    given = {
        "decoder_input_ids": torch.randint(0, VOCABULARY, (1, 5)),
        "encoder_hidden_states": torch.rand(1, 24, 32),
    }
    axes = {
        "decoder_input_ids": {0: "batch", 1: "sequence"},
        "encoder_hidden_states": {0: "batch"},
    }
    return export(_WhisperDecoder(), given, ["logits"], axes)


def clip_text() -> bytes:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        intermediate_size=64,
        projection_dim=16,
        max_position_embeddings=24,
        eos_token_id=98,
        attn_implementation="eager",
        **SMALL,
    )
    return _text(transformers.CLIPTextModelWithProjection, config, ["text_embeds"])


def clip_vision() -> bytes:
    config = transformers.CLIPVisionConfig(
        image_size=32,
        patch_size=8,
        intermediate_size=64,
        projection_dim=16,
        attn_implementation="eager",
        **SMALL,
    )
    return _image(transformers.CLIPVisionModelWithProjection, config, ["image_embeds"])


def dpt() -> bytes:
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
        attn_implementation="eager",
    )
    return _image(transformers.DPTForDepthEstimation, config, ["predicted_depth"])


def sam() -> bytes:
    """Image encoder, prompt encoder and mask decoder."""
    vision = transformers.SamVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        window_size=3,
        global_attn_indexes=[1],
        mlp_dim=64,
        output_channels=16,
        num_pos_feats=8,
        attn_implementation="eager",
    )
    prompt = transformers.SamPromptEncoderConfig(
        hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
    )
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=16,
        mlp_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        iou_head_hidden_dim=16,
        attn_implementation="eager",
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=decoder.to_dict(),
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    given = {
        "pixel_values": torch.rand(1, 3, 64, 64),
        "input_points": torch.rand(1, 1, 2, 2) * 64,
        "input_labels": torch.tensor([[[1, 0]]]),
    }
    axes = {"input_points": {2: "points"}, "input_labels": {2: "points"}}
    return export(transformers.SamModel(config), given, ["iou_scores", "pred_masks"], axes)


class _Encoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, **given: Any) -> Any:
        return self.encoder(**given)


def _seq2seq(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
        return transformers.T5ForConditionalGeneration(config)
    marian = transformers.MarianConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    return transformers.MarianMTModel(marian)


def _text_encoder(kind: str) -> bytes:
    ids = torch.randint(2, VOCABULARY, (2, 7))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return export(_Encoder(_seq2seq(kind)), given, ["last_hidden_state"], TEXT)


class _Decoder(torch.nn.Module):
    """Logits of a decoder over all of its ids so far, given the encoder's states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, encoder_hidden_states: Any, **given: Any) -> Any:
        found = self.model(
            encoder_outputs=(encoder_hidden_states,),
            attention_mask=given["encoder_attention_mask"],
            decoder_input_ids=input_ids,
            use_cache=False,
            return_dict=True,
        )
        return {"logits": found.logits}


def _text_decoder(kind: str) -> bytes:
    model = _seq2seq(kind)
    given = {
        "input_ids": torch.randint(2, VOCABULARY, (2, 4)),
        "encoder_hidden_states": torch.rand(2, 7, 32),
        "encoder_attention_mask": torch.ones(2, 7, dtype=torch.int64),
    }
    axes = {
        "input_ids": {0: "batch", 1: "decoder_sequence"},
        "encoder_hidden_states": {0: "batch", 1: "sequence"},
        "encoder_attention_mask": {0: "batch", 1: "sequence"},
    }
    return export(_Decoder(model), given, ["logits"], axes)


def llama() -> bytes:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        intermediate_size=64,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation="eager",
        **SMALL,
    )
    config.use_cache = False
    return _text(transformers.LlamaForCausalLM, config, ["logits"])


EXPORTS: dict[str, Callable[[], bytes]] = {
    "bert": bert,
    "distilbert": distilbert,
    "vit": vit,
    "resnet": resnet,
    "mobilenet_v2": mobilenet_v2,
    "detr": detr,
    "whisper_encoder": whisper_encoder,
    "whisper_decoder": whisper_decoder,
    "clip_text": clip_text,
    "clip_vision": clip_vision,
    "sam": sam,
    "dpt": dpt,
    "t5_encoder": lambda: _text_encoder("t5"),
    "t5_decoder": lambda: _text_decoder("t5"),
    "marian_encoder": lambda: _text_encoder("marian"),
    "marian_decoder": lambda: _text_decoder("marian"),
    "llama": llama,
}

#: of the free axes in two runs
SIZES = (
    {"batch": 1, "sequence": 5, "decoder_sequence": 3, "points": 1},
    {"batch": 3, "sequence": 11, "decoder_sequence": 6, "points": 4},
)


def feeds(data: bytes, sizes: Mapping[str, int], seed: int = 1) -> dict[str, Array]:
    """Random inputs; masks end with zeros in all rows but the first."""
    rng = np.random.default_rng(seed)
    out: dict[str, Array] = {}
    for info in onnx.load_from_string(data).graph.input:
        kind = info.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in kind.shape.dim]
        if kind.elem_type == onnx.TensorProto.FLOAT:
            out[info.name] = rng.standard_normal(shape).astype("f4")
        elif "labels" in info.name:
            out[info.name] = rng.integers(0, 2, shape)
        elif "mask" in info.name:
            mask = np.ones(shape, "i8")
            mask[1:, -2:] = 0
            out[info.name] = mask
        else:
            out[info.name] = rng.integers(2, VOCABULARY, shape)
    return out
