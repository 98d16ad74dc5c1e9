#!/usr/bin/env python3
"""Makes the golden files of this folder with the Python packages gguf (0.19.0), numpy and safetensors.

    python runtime/formats/tests/golden/make.py

codecs.safetensors: random blocks of every encoding with the numbers that gguf decodes, and random numbers with the blocks
that it encodes. *.gguf: tiny models whose numbers follow from their places (`number`), which the tests know too.
"""
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
WIDTH = 512


def codecs():
    random = np.random.default_rng(11)
    tensors = {}
    for q in [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]:
        block, size = gguf.GGML_QUANT_SIZES[q]
        raw = random.integers(0, 256, (WIDTH // block, size), dtype=np.uint8)
        halves = {Q.Q4_1: [0, 2], Q.Q5_1: [0, 2], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}
        for at in halves.get(q, [0] if block > 1 else []):
            scales = (random.standard_normal(len(raw)) * 0.05).astype(np.float16)
            raw[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
        if block == 1:
            numbers = (random.standard_normal(WIDTH) * 3).astype(np.float32)
            raw = gguf.quantize(numbers.reshape(1, -1), q)
        raw = np.ascontiguousarray(raw).view(np.uint8).reshape(1, -1)
        tensors[f"{q.name}.bytes"] = raw.reshape(-1)
        typed = raw.view({Q.F32: np.float32, Q.F16: np.float16}.get(q, np.uint8))
        tensors[f"{q.name}.numbers"] = np.ascontiguousarray(gguf.dequantize(typed, q), dtype=np.float32).reshape(-1)
    numbers = (random.standard_normal(WIDTH) * np.repeat(10.0 ** random.integers(-4, 3, WIDTH // 32), 32))
    numbers = numbers.astype(np.float32)
    numbers[:32] = 0
    numbers[32:64] = -0.0
    numbers[64] = numbers[65] = -abs(numbers[64:96]).max()
    numbers[66] = -numbers[64]
    tensors["input"] = numbers
    for q in [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0]:
        encoded = gguf.quantize(numbers.reshape(1, -1), q)
        tensors[f"{q.name}.encoded"] = np.ascontiguousarray(encoded).view(np.uint8).reshape(-1)
    save_file(tensors, HERE / "codecs.safetensors")


def number(tensor, shape):
    """Numbers that a half can hold, from the tensor's place among all and the number's in it."""
    places = np.arange(np.prod(shape))
    return (((places * 31 + tensor * 17) % 251 - 125) / 64).astype(np.float32).reshape(shape)


def interleave(weight, heads):
    """What convert_hf_to_gguf.py does to queries and keys of Llama."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


D, INNER, HEADS, KV, VOCAB, LAYERS, POSITIONS = 16, 24, 4, 2, 48, 2, 32
HEAD = D // HEADS


def common(arch, name):
    writer = gguf.GGUFWriter(HERE / name, arch)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    return writer


def finish(writer, tensors):
    for place, (name, shape, change) in enumerate(tensors):
        value = change(number(place, shape))
        dtype = np.float16 if value.ndim > 1 else np.float32
        writer.add_tensor(name, np.ascontiguousarray(value).astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def same(value):
    return value


def llama_like(arch, bias, norms, tied):
    turn = arch == "llama"
    q = (lambda w: interleave(w, HEADS)) if turn else same
    k = (lambda w: interleave(w, KV)) if turn else same
    tensors = [("token_embd.weight", (VOCAB, D), same)]
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        tensors.append((b + "attn_norm.weight", (D,), same))
        for name, rows, change in [("attn_q", D, q), ("attn_k", KV * HEAD, k), ("attn_v", KV * HEAD, same)]:
            tensors.append((f"{b}{name}.weight", (rows, D), change))
            if bias:
                tensors.append((f"{b}{name}.bias", (rows,), change))
        if norms:
            tensors += [(b + "attn_q_norm.weight", (HEAD,), same), (b + "attn_k_norm.weight", (HEAD,), same)]
        tensors += [
            (b + "attn_output.weight", (D, D), same),
            (b + "ffn_norm.weight", (D,), same),
            (b + "ffn_gate.weight", (INNER, D), same),
            (b + "ffn_up.weight", (INNER, D), same),
            (b + "ffn_down.weight", (D, INNER), same),
        ]
    tensors.append(("output_norm.weight", (D,), same))
    if not tied:
        tensors.append(("output.weight", (VOCAB, D), same))
    return tensors


def gpt2_like():
    turn = np.transpose
    tensors = [("token_embd.weight", (VOCAB, D), same), ("position_embd.weight", (POSITIONS, D), same)]
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        for name, shape in [
            ("attn_norm", (D,)), ("attn_qkv", (D, 3 * D)), ("attn_output", (D, D)), ("ffn_norm", (D,)),
            ("ffn_up", (D, INNER)), ("ffn_down", (INNER, D)),
        ]:
            tensors.append((f"{b}{name}.weight", shape, turn if len(shape) > 1 else same))
            tensors.append((f"{b}{name}.bias", shape[-1:], same))
    return tensors + [("output_norm.weight", (D,), same), ("output_norm.bias", (D,), same)]


def byte_level(writer, pre):
    """A vocabulary of letters in the form of byte-level BPE, two merges and two special tokens."""
    letters = list("abcABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?")
    tokens = ["<|end|>", "<|user|>", *letters, "\u0120", "ab", "abc"]
    assert len(tokens) == VOCAB
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (VOCAB - 2))
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(1)
    writer.add_chat_template("{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}")


def sentence_piece(writer):
    bytes_ = ["<0x0A>", "<0xE4>", "<0xBD>", "<0xA0>"]
    letters = list("\u2581abcdefghijklmnopqrstuvwxyz")
    words = "\u2581a ab \u2581ab abc he ll lo llo hello \u2581hello wor ld world \u2581world".split()
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *letters, *words]
    types = [2, 3, 3] + [6] * 4 + [1] * (len(letters) + len(words))
    assert len(tokens) == VOCAB
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 7 + [-float(i) for i in range(VOCAB - 7)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def models():
    writer = common("llama", "llama.gguf")
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    sentence_piece(writer)
    finish(writer, llama_like("llama", False, False, False))

    writer = common("qwen2", "qwen2.gguf")
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1000000.0)
    byte_level(writer, "qwen2")
    finish(writer, llama_like("qwen2", True, False, True))

    writer = common("qwen3", "qwen3.gguf")
    writer.add_head_count_kv(KV)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1000000.0)
    finish(writer, llama_like("qwen3", False, True, True))

    writer = common("gpt2", "gpt2.gguf")
    writer.add_layer_norm_eps(1e-5)
    byte_level(writer, "gpt-2")
    finish(writer, gpt2_like())


if __name__ == "__main__":
    codecs()
    models()
