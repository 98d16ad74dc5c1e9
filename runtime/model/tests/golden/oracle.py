"""Makes the golden files of small models with PyTorch alone: the formulas of the papers in f64, differentiated by autograd.

    python3 runtime/model/tests/golden/oracle.py runtime/model/tests/golden [NAME ...]

A file holds weights under Hugging Face's names, a batch of odd length that packs several documents, the logits,
every gradient of the mean loss, and loss and gradient norm of ten steps of torch.optim.AdamW with clipping and the
trainer's schedule; its metadata holds config.json, the optimizer's options and the versions used. Needs torch.
"""

import json
import math
import platform
import struct
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

LENGTH, SEQUENCES, STEPS, IGNORED = 37, 2, 10, -100
# Rows at which documents begin: each sequence packs several, one of them a single token.
DOCUMENT_STARTS = [0, 12, 13, 37, 66]
OPTIMIZER = {
    "learning_rate": 0.01,
    "final_learning_rate_ratio": 0.1,
    "warmup_steps": 3,
    "steps": STEPS,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.2,
}
EPS = 1e-5


class Llama:
    """Touvron et al., 2023: RMSNorm, rotary positions, grouped queries, SwiGLU."""

    model_type, heads, kv_heads, head, d, inner, theta = "llama", 4, 2, 6, 16, 20, 500.0
    biases, norms_heads = "", False

    def __init__(self, tied, layers=2, **changes):
        self.layers = layers
        self.config = {
            "model_type": self.model_type,
            "vocab_size": 29,
            "hidden_size": self.d,
            "intermediate_size": self.inner,
            "num_hidden_layers": layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "max_position_embeddings": 64,
            "rms_norm_eps": EPS,
            "rope_theta": self.theta,
            "tie_word_embeddings": tied,
        } | changes

    def shapes(self):
        d, q, kv = self.d, self.heads * self.head, self.kv_heads * self.head
        layer = {
            "input_layernorm.weight": (d,),
            "self_attn.q_proj.weight": (q, d),
            "self_attn.k_proj.weight": (kv, d),
            "self_attn.v_proj.weight": (kv, d),
            "self_attn.o_proj.weight": (d, q),
            "post_attention_layernorm.weight": (d,),
            "mlp.gate_proj.weight": (self.inner, d),
            "mlp.up_proj.weight": (self.inner, d),
            "mlp.down_proj.weight": (d, self.inner),
        }
        for p in self.biases:
            layer[f"self_attn.{p}_proj.bias"] = layer[f"self_attn.{p}_proj.weight"][:1]
        if self.norms_heads:
            layer |= {"self_attn.q_norm.weight": (self.head,), "self_attn.k_norm.weight": (self.head,)}
        shapes = {"model.embed_tokens.weight": (29, d), "model.norm.weight": (d,)}
        if not self.config["tie_word_embeddings"]:
            shapes["lm_head.weight"] = (29, d)
        layers = range(self.layers)
        return shapes | {f"model.layers.{i}.{name}": shape for i in layers for name, shape in layer.items()}

    def logits(self, w, tokens, positions, seen):
        def project(x, name):
            y = x @ w[name + ".weight"].T
            return y + w[name + ".bias"] if name + ".bias" in w else y

        x = w["model.embed_tokens.weight"][tokens]
        for i in range(self.layers):
            at = f"model.layers.{i}."
            h = self.norm(x, w[at + "input_layernorm.weight"])
            q, k, v = (split(project(h, f"{at}self_attn.{p}_proj"), self.head) for p in "qkv")
            if self.norms_heads:
                q, k = (self.norm(t, w[f"{at}self_attn.{p}_norm.weight"]) for p, t in (("q", q), ("k", k)))
            q, k = self.rotate(q, positions), self.rotate(k, positions)
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
            x = x + project(attend(q, k, v, seen), at + "self_attn.o_proj")
            h = self.norm(x, w[at + "post_attention_layernorm.weight"])
            gate, up = (h @ w[f"{at}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
            x = x + (gate * torch.sigmoid(gate) * up) @ w[at + "mlp.down_proj.weight"].T
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return self.norm(x, w["model.norm.weight"]) @ head.T

    def norm(self, x, weight):
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight

    def rotate(self, x, positions):
        frequencies, scale = self.frequencies()
        angles = positions[:, None, :, None] * frequencies
        a, b = x.chunk(2, dim=-1)
        return scale * torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    def frequencies(self):
        """Radians a position of each pair, and what queries and keys grow by."""
        pairs = torch.arange(self.head // 2, dtype=torch.float64)
        plain = self.theta ** (-2 * pairs / self.head)
        scaling = self.config.get("rope_scaling", {"rope_type": "default"})
        kind, factor = scaling["rope_type"], scaling.get("factor", 1.0)
        if kind == "default":
            return plain, 1.0
        if kind == "linear":
            return plain / factor, 1.0
        # How often each pair turns in the length that the model was first trained with.
        turns = plain * scaling["original_max_position_embeddings"] / (2 * math.pi)
        if kind == "llama3":
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            kept = ((turns - low) / (high - low)).clamp(0, 1)
            return plain * kept + plain / factor * (1 - kept), 1.0
        # YaRN: pairs are counted, between those that turn so often.
        def pair(turns):
            length = scaling["original_max_position_embeddings"]
            return self.head * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        first, last = math.floor(pair(scaling["beta_fast"])), math.ceil(pair(scaling["beta_slow"]))
        first, last = max(first, 0), min(last, self.head - 1)
        divided = ((pairs - first) / (last - first)).clamp(0, 1)
        return plain / factor * divided + plain * (1 - divided), 0.1 * math.log(factor) + 1


class Qwen2(Llama):
    """Yang et al., 2024: biases of queries, keys and values."""

    model_type, biases = "qwen2", "qkv"


class Qwen3(Llama):
    """Yang et al., 2025: a norm of every query and key head."""

    model_type, norms_heads = "qwen3", True


class Gpt2:
    """Radford et al., 2019: LayerNorm, learned positions, GELU (tanh form), biases; projections are [inputs, outputs]."""

    heads, d, inner, positions = 3, 18, 26, 41

    def __init__(self, tied):
        self.config = {
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "vocab_size": 29,
            "n_embd": self.d,
            "n_inner": self.inner,
            "n_layer": 2,
            "n_head": self.heads,
            "n_positions": self.positions,
            "layer_norm_epsilon": EPS,
            "tie_word_embeddings": tied,
        }

    def shapes(self):
        d = self.d
        layer = {"ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,)}
        projections = {
            "attn.c_attn": (d, 3 * d),
            "attn.c_proj": (d, d),
            "mlp.c_fc": (d, self.inner),
            "mlp.c_proj": (self.inner, d),
        }
        for name, shape in projections.items():
            layer |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
        shapes = {"wte.weight": (29, d), "wpe.weight": (self.positions, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
        shapes |= {f"h.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
        shapes = {f"transformer.{name}": shape for name, shape in shapes.items()}
        return shapes if self.config["tie_word_embeddings"] else shapes | {"lm_head.weight": (29, d)}

    def logits(self, w, tokens, positions, seen):
        def norm(x, name):
            return F.layer_norm(x, (self.d,), w[f"transformer.{name}.weight"], w[f"transformer.{name}.bias"], EPS)

        def project(x, name):
            return x @ w[f"transformer.{name}.weight"] + w[f"transformer.{name}.bias"]

        table = w["transformer.wte.weight"]
        x = table[tokens] + w["transformer.wpe.weight"][positions]
        for i in range(2):
            qkv = project(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
            q, k, v = (split(t, self.d // self.heads) for t in qkv.split(self.d, dim=-1))
            x = x + project(attend(q, k, v, seen), f"h.{i}.attn.c_proj")
            inner = F.gelu(project(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
            x = x + project(inner, f"h.{i}.mlp.c_proj")
        return norm(x, "ln_f") @ w.get("lm_head.weight", table).T


def split(x, head):
    """[sequences, tokens, heads * head] -> [sequences, heads, tokens, head]"""
    return x.unflatten(-1, (-1, head)).transpose(1, 2)


def attend(q, k, v, seen):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~seen[:, None], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def batch(vocabulary):
    """Tokens, targets, positions and the number of each row's document, all [sequences, length]."""
    rows = LENGTH * SEQUENCES
    stream = [(i * i * 7 + i * 3 + 5) % vocabulary for i in range(rows + 1)]
    document = [sum(row >= start for start in DOCUMENT_STARTS) - 1 for row in range(rows)]
    position = [row - DOCUMENT_STARTS[document[row]] for row in range(rows)]
    # The last token of a document does not predict the first of the next.
    target = [IGNORED if row + 1 in DOCUMENT_STARTS else stream[row + 1] for row in range(rows)]
    return [torch.tensor(values).view(SEQUENCES, LENGTH) for values in (stream[:-1], target, position, document)]


def loss_of(model, weights, tokens, targets, positions, documents):
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    seen = causal & (documents[:, :, None] == documents[:, None, :])
    logits = model.logits(weights, tokens, positions, seen)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED), logits


def learning_rate(step):
    high, warmup = OPTIMIZER["learning_rate"], OPTIMIZER["warmup_steps"]
    if step < warmup:
        return high * (step + 1) / warmup
    low = high * OPTIMIZER["final_learning_rate_ratio"]
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (OPTIMIZER["steps"] - warmup)))


def train(model, weights, inputs):
    """Loss and gradient norm of each step before its update."""
    matrices = [p for p in weights.values() if p.dim() > 1]
    vectors = [p for p in weights.values() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": OPTIMIZER["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    betas = (OPTIMIZER["beta1"], OPTIMIZER["beta2"])
    adamw = torch.optim.AdamW(groups, betas=betas, eps=OPTIMIZER["epsilon"])
    steps = []
    for step in range(STEPS):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step)
        adamw.zero_grad()
        loss, _ = loss_of(model, weights, *inputs)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), OPTIMIZER["clip_norm"])
        adamw.step()
        steps.append((loss.item(), norm.item()))
    return steps


def initial(model):
    """Weights as f32 holds them, large enough that no gradient vanishes; norms differ from 1 and biases from 0."""
    random = torch.Generator().manual_seed(7)
    weights = {}
    for name, shape in sorted(model.shapes().items()):
        values = 0.15 * torch.randn(shape, generator=random)
        is_norm = len(shape) == 1 and name.endswith("weight")
        weights[name] = (1 + values if is_norm else values).double().requires_grad_()
    return weights


def save(tensors, metadata, out):
    """Writes safetensors: the length of a JSON header, the header, the numbers."""
    header, numbers = {"__metadata__": metadata}, b""
    for name, tensor in sorted(tensors.items()):
        kind, letter = {torch.float32: ("F32", "f"), torch.int32: ("I32", "i")}[tensor.dtype]
        values = tensor.flatten().tolist()
        start, numbers = len(numbers), numbers + struct.pack(f"<{len(values)}{letter}", *values)
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, len(numbers)]}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    out.write_bytes(struct.pack("<Q", len(header)) + header + numbers)


def make(model, out):
    inputs, weights = batch(model.config["vocab_size"]), initial(model)
    tensors = {name: weight.detach().float() for name, weight in weights.items()}
    loss, logits = loss_of(model, weights, *inputs)
    loss.backward()
    tensors |= {f"gradient.{name}": weight.grad.float() for name, weight in weights.items()}
    tensors["logits"] = logits.detach().float()
    tensors["tokens"], tensors["targets"] = (values.to(torch.int32) for values in inputs[:2])
    tensors["document_starts"] = torch.tensor(DOCUMENT_STARTS, dtype=torch.int32)
    steps = train(model, weights, inputs)
    tensors["losses"], tensors["norms"] = (torch.tensor(values, dtype=torch.float32) for values in zip(*steps))
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    metadata = {"config": json.dumps(model.config), "optimizer": json.dumps(OPTIMIZER), "versions": versions}
    save(tensors, metadata, out)
    print(out, versions, steps)


SCALINGS = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 0.5,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 24,
    },
    "yarn": {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.25, "original_max_position_embeddings": 24},
}


def main(folder, *wanted):
    models = {}
    for tied in (False, True):
        kind = "tied" if tied else "untied"
        models |= {f"llama_{kind}": Llama(tied), f"gpt2_{kind}": Gpt2(tied)}
    models |= {"qwen2": Qwen2(False), "qwen3": Qwen3(True)}
    for kind, numbers in SCALINGS.items():
        models[f"llama_{kind}"] = Llama(True, layers=1, rope_scaling={"rope_type": kind} | numbers)
    for name in wanted or models:
        make(models[name], Path(folder) / f"{name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
