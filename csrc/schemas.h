// Every operator schema of ROOTS, once. The CPU library and the simulator define them, each under
// its own namespace; the CUDA library implements those of the CPU library.
//
// Tensors are float32, float16 or bfloat16 unless said otherwise; sums are carried in float32.
// Legend: B rows, T tokens or queries, S keys, N heads, K key heads, D head size, H hidden, F inner
// width, M tokens of all rows, V vocabulary (or the local slice of it), R rotated pairs of a head.
#pragma once

// attention: o = softmax(scale q k^T, over the visible keys) v with q [B,T,N,D], k and v [B,S,K,D].
// Key s is visible to query t of row b iff lo <= s < hi with (lo, hi) = key_ranges[b,t] (int32
// [B,T,2]; absent: all), if causal s <= t+S-T, if window > 0 s > t+S-T-window. Dropout of the
// weights: csrc/philox.h, dropout_keys int64 [B]. lse float32 [B,N,T], natural logarithm; a query
// that sees no key has o = 0 and lse = -inf.
// dlse: gradient of lse, float32 [B,N,T].
#define ROOTS_ATTENTION_SCHEMAS(X)                                                               \
  X("attention_forward(Tensor q, Tensor k, Tensor v, Tensor? key_ranges, bool causal, "          \
    "int window, float scale, float dropout_rate, Tensor? dropout_keys, int first_head) "        \
    "-> (Tensor o, Tensor lse)")                                                                 \
  X("attention_backward(Tensor do, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor o, "       \
    "Tensor lse, Tensor? key_ranges, bool causal, int window, float scale, float dropout_rate, " \
    "Tensor? dropout_keys, int first_head) -> (Tensor dq, Tensor dk, Tensor dv)")

// scaled_masked_softmax: y[b,n,t,:] = softmax(scale * scores[b,n,t,:] + mask), over visible keys.
// mask: bool (true: takes part) or of the scores' dtype (added), [B or 1, N or 1, T or 1, S];
// causal: key s takes part iff s <= t+S-T. A row without keys gives zeros.
#define ROOTS_SOFTMAX_SCHEMAS(X)                                                               \
  X("scaled_masked_softmax_forward(Tensor scores, Tensor? mask, float scale, bool causal) -> " \
    "Tensor")                                                                                  \
  X("scaled_masked_softmax_backward(Tensor dy, Tensor y, float scale) -> Tensor")

// layer_norm, rms_norm: stream = x + residual (or x), y = normalised stream * weight + bias over
// the last dim; weight counts as 1 + weight if zero_centred. `stream` is empty without residual
// (the caller has x). mean, rstd: float32 [rows]. dstream: gradient of the stream from elsewhere.
// dx is the gradient of x and of the residual alike. dweight, dbias: float32 [H], dbias empty
// unless has_bias.
#define ROOTS_NORM_SCHEMAS(X)                                                                      \
  X("layer_norm_forward(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float epsilon, "  \
    "bool zero_centred) -> (Tensor y, Tensor stream, Tensor mean, Tensor rstd)")                   \
  X("layer_norm_backward(Tensor dy, Tensor? dstream, Tensor stream, Tensor weight, Tensor mean, "  \
    "Tensor rstd, bool zero_centred, bool has_bias) -> (Tensor dx, Tensor dweight, Tensor dbias)") \
  X("rms_norm_forward(Tensor x, Tensor? residual, Tensor weight, float epsilon, "                  \
    "bool zero_centred) -> (Tensor y, Tensor stream, Tensor rstd)")                                \
  X("rms_norm_backward(Tensor dy, Tensor? dstream, Tensor stream, Tensor weight, Tensor rstd, "    \
    "bool zero_centred) -> (Tensor dx, Tensor dweight)")

// rotary: pairs (i, i+R) of a head, or (2i, 2i+1) if interleaved, turned by the angle whose cosine
// and sine stand in row p of cos and sin, float32 [P,R] or [B,T,R]: p = positions[b,t] (int64
// [B,T]), or t without positions. Dims from 2R on are kept. inverse: by the negative angle.
#define ROOTS_ROTARY_SCHEMAS(X)                                                                   \
  X("rotary(Tensor x, Tensor cos, Tensor sin, Tensor? positions, bool interleaved, bool inverse)" \
    " -> Tensor")                                                                                 \
  X("rotary_(Tensor(a!) x, Tensor cos, Tensor sin, Tensor? positions, bool interleaved, "         \
    "bool inverse) -> ()")

// bias_gelu: y = gelu(x + bias), x [..., F]. swiglu: y = silu(gate) * up with (gate, up) the halves
// of x + bias, x [..., 2F]. dbias: float32, empty without bias.
#define ROOTS_ACTIVATION_SCHEMAS(X)                                                    \
  X("bias_gelu_forward(Tensor x, Tensor? bias, bool tanh) -> Tensor")                  \
  X("bias_gelu_backward(Tensor dy, Tensor x, Tensor? bias, bool tanh) -> (Tensor dx, " \
    "Tensor dbias)")                                                                   \
  X("swiglu_forward(Tensor x, Tensor? bias) -> Tensor")                                \
  X("swiglu_backward(Tensor dy, Tensor x, Tensor? bias) -> (Tensor dx, Tensor dbias)")

// cross_entropy, in stages over a slice of the vocabulary that starts at id `first`; logits [M,V]
// (rows may be strided), labels int64 [M]. softmax_statistics: float32 [M] each: largest logit; sum
// of exp(logit - largest); the label's logit, 0 if outside of the slice; sum of the logits.
// softmax_gradient_ writes over the logits, with p the softmax over the whole vocabulary and
// lse = row_max + log(sum_exp), both of the whole:
//   row_weight * (p * (1 + 2 z_loss lse) - (1 - smoothing) [v == label] - smoothing / vocab_size)
// and zeros in a row of weight 0, whatever its logits. softmax_gradient writes to a new tensor.
#define ROOTS_CROSS_ENTROPY_SCHEMAS(X)                                                           \
  X("softmax_statistics(Tensor logits, Tensor labels, int first) -> (Tensor row_max, "           \
    "Tensor sum_exp, Tensor picked, Tensor sum_logits)")                                         \
  X("softmax_gradient_(Tensor(a!) logits, Tensor row_max, Tensor sum_exp, Tensor labels, "       \
    "Tensor row_weights, int first, int vocab_size, float label_smoothing, float z_loss) -> ()") \
  X("softmax_gradient(Tensor logits, Tensor row_max, Tensor sum_exp, Tensor labels, "            \
    "Tensor row_weights, int first, int vocab_size, float label_smoothing, float z_loss) -> "    \
    "Tensor")

// bias_dropout_add: y = residual + keep * (x + bias) / (1 - rate), x [B,T,H]; keep is a hash of
// (token_keys[b,t], h), see roots/ops/dropout.py; without keys nothing is dropped. dx is the
// gradient of x (empty without keys: it is dy), dbias float32 [H] (empty without bias); that of the
// residual is dy.
#define ROOTS_DROPOUT_SCHEMAS(X)                                                              \
  X("bias_dropout_add_forward(Tensor x, Tensor? bias, Tensor? residual, Tensor? token_keys, " \
    "float rate) -> Tensor")                                                                  \
  X("bias_dropout_add_backward(Tensor dy, Tensor? token_keys, float rate, bool has_bias) -> " \
    "(Tensor dx, Tensor dbias)")

// check_finite: int64 [1], the index of the first tensor that holds an infinity or NaN, or -1.
#define ROOTS_CHECK_SCHEMAS(X) X("check_finite(Tensor[] tensors) -> Tensor")

#define ROOTS_SCHEMAS(X)         \
  ROOTS_ATTENTION_SCHEMAS(X)     \
  ROOTS_SOFTMAX_SCHEMAS(X)       \
  ROOTS_NORM_SCHEMAS(X)          \
  ROOTS_ROTARY_SCHEMAS(X)        \
  ROOTS_ACTIVATION_SCHEMAS(X)    \
  ROOTS_CROSS_ENTROPY_SCHEMAS(X) \
  ROOTS_DROPOUT_SCHEMAS(X)       \
  ROOTS_CHECK_SCHEMAS(X)
