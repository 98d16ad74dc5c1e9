//! How the tensors of a GPT-2 lie in Hugging Face's files.

use crate::families::llama;
use crate::hugging_face::FileTensor;
use crate::packed::QUERY_KEY_VALUE;
use crate::unit::{Place, Tensor};

/// GPT-2 has queries, keys and values as one projection, and projections transposed.
pub(super) fn file_tensor(place: Place, tensor: Tensor) -> FileTensor {
    const QUERY_KEY_VALUE_BIAS: [Tensor; 3] = [Tensor::QueryBias, Tensor::KeyBias, Tensor::ValueBias];
    let whole = |name: &'static str| (name, vec![tensor], false);
    let projection = |name: &'static str| (name, vec![tensor], true);
    let (inner, parts, transposed) = match tensor {
        Tensor::Embedding => whole("wte.weight"),
        Tensor::PositionEmbedding => whole("wpe.weight"),
        Tensor::AttentionNorm => whole("ln_1.weight"),
        Tensor::AttentionNormBias => whole("ln_1.bias"),
        Tensor::Query | Tensor::Key | Tensor::Value => ("attn.c_attn.weight", QUERY_KEY_VALUE.to_vec(), true),
        Tensor::QueryBias | Tensor::KeyBias | Tensor::ValueBias => {
            ("attn.c_attn.bias", QUERY_KEY_VALUE_BIAS.to_vec(), false)
        }
        Tensor::AttentionOutput => projection("attn.c_proj.weight"),
        Tensor::AttentionOutputBias => whole("attn.c_proj.bias"),
        Tensor::FeedForwardNorm => whole("ln_2.weight"),
        Tensor::FeedForwardNormBias => whole("ln_2.bias"),
        Tensor::Up => projection("mlp.c_fc.weight"),
        Tensor::UpBias => whole("mlp.c_fc.bias"),
        Tensor::Down => projection("mlp.c_proj.weight"),
        Tensor::DownBias => whole("mlp.c_proj.bias"),
        Tensor::FinalNorm => whole("ln_f.weight"),
        Tensor::FinalNormBias => whole("ln_f.bias"),
        Tensor::Head => whole("lm_head.weight"),
        // What only other families have.
        _ => return llama::file_tensor(place, tensor),
    };
    let name = match place {
        Place::Layer(layer) => format!("transformer.h.{layer}.{inner}"),
        Place::Output if tensor == Tensor::Head => inner.to_owned(),
        Place::Input | Place::Output => format!("transformer.{inner}"),
    };
    FileTensor { name, place, parts, transposed, diagonal: Vec::new() }
}
