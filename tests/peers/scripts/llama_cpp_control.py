"""llama.cpp: the model as a GGUF file, and control vectors from files added by its own adapter,
filled as its `common_control_vector_load` fills it."""

import gguf
import job as jobs
import numpy as np
import torch
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

api, ffi = get_lib(), get_ffi()
job = jobs.read()
plain = jobs.model_of(job)
config = plain.config
path = job.out / "model.gguf"
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(config.max_position_embeddings)
writer.add_embedding_length(config.hidden_size)
writer.add_block_count(config.num_hidden_layers)
writer.add_feed_forward_length(config.intermediate_size)
writer.add_head_count(config.num_attention_heads)
writer.add_head_count_kv(config.num_key_value_heads)
writer.add_layer_norm_rms_eps(config.rms_norm_eps)
writer.add_rope_dimension_count(config.head_dim)
writer.add_vocab_size(config.vocab_size)
writer.add_tokenizer_model("no_vocab")


def halves_to_pairs(weight, heads):
    """The rows of each head as llama.cpp turns them: pairs stand beside each other."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


ours = {
    "token_embd": plain.model.embed_tokens.weight,
    "output_norm": plain.model.norm.weight,
    "output": plain.lm_head.weight,
}
for number, block in enumerate(plain.model.layers):
    attention, mlp = block.self_attn, block.mlp
    queries, keys = attention.q_proj.weight, attention.k_proj.weight
    ours |= {
        f"blk.{number}.{name}": weight
        for name, weight in {
            "attn_norm": block.input_layernorm.weight,
            "attn_q": halves_to_pairs(queries, config.num_attention_heads),
            "attn_k": halves_to_pairs(keys, config.num_key_value_heads),
            "attn_v": attention.v_proj.weight,
            "attn_output": attention.o_proj.weight,
            "ffn_norm": block.post_attention_layernorm.weight,
            "ffn_gate": mlp.gate_proj.weight,
            "ffn_up": mlp.up_proj.weight,
            "ffn_down": mlp.down_proj.weight,
        }.items()
    }
for name, weight in ours.items():
    writer.add_tensor(f"{name}.weight", weight.detach().contiguous().numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

api.llama_backend_init()
model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
wanted = api.llama_context_default_params()
wanted.n_ctx, wanted.n_threads, wanted.n_threads_batch = 64, 1, 1


def vector_in(file) -> np.ndarray:
    """Direction L stands at row L - 1 of what the adapter takes."""
    filled = np.zeros((config.num_hidden_layers, config.hidden_size), dtype=np.float32)
    for tensor in gguf.GGUFReader(file).tensors:
        filled[int(tensor.name.removeprefix("direction.")) - 1] = tensor.data
    return filled


def run(filled: np.ndarray) -> torch.Tensor:
    rows = []
    for ids in job.base.tolist():
        context = api.llama_init_from_model(model, wanted)
        data, size = ffi.from_buffer("float[]", filled), config.hidden_size
        last = config.num_hidden_layers
        assert api.llama_set_adapter_cvec(context, data, filled.size, size, 1, last) == 0
        tokens = ffi.new("llama_token[]", ids)
        assert api.llama_decode(context, api.llama_batch_get_one(tokens, len(ids))) == 0
        logits = api.llama_get_logits_ith(context, -1)
        rows.append(np.frombuffer(ffi.buffer(logits, 4 * config.vocab_size), np.float32).copy())
        api.llama_free(context)
    return torch.from_numpy(np.stack(rows))


found = {name: run(job.strength * vector_in(file)) for name, file in job.files.items()}
jobs.done(job, untouched=run(np.zeros((4, config.hidden_size), np.float32)), **found)
