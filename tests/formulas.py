"""The formulas of cells as in their papers, for NumPy (or jax.numpy): (params, carry, x, xp) ->
carry, of a batch of H units."""

from lm_jax.models import cells, sru, xlstm

H = 6


def sigmoid(a, xp):
    return 1 / (1 + xp.exp(-a))


def norm(a, gain, bias, xp):
    a = a - a.mean(-1, keepdims=True)
    return gain[None] * a / xp.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) + bias[None]


def columns(matrix, gates):
    return [matrix[..., k * H : (k + 1) * H] for k in range(gates)]


def elman(p, h, x, xp):
    return xp.tanh(x @ p["W_xh"] + h @ p["W_hh"] + p["b_h"][None])


def lstm(p, state, x, xp):
    h, c = state
    if "g_x" in p:
        zero = xp.zeros(4 * H)
        z = norm(x @ p["W_xh"], p["g_x"], p["b_h"], xp) + norm(h @ p["W_hh"], p["g_h"], zero, xp)
    else:
        z = x @ p["W_xh"] + h @ p["W_hh"] + p["b_h"][None]
    i, f, g, o = columns(z, 4)
    p_i, p_f, p_o = p.get("p", xp.zeros((3, H)))
    c_next = sigmoid(f + p_f[None] * c, xp) * c + sigmoid(i + p_i[None] * c, xp) * xp.tanh(g)
    seen = norm(c_next, p["g_c"], p["b_c"], xp) if "g_c" in p else c_next
    return cells.LSTMState(sigmoid(o + p_o[None] * c_next, xp) * xp.tanh(seen), c_next)


def mogrifier(p, state, x, xp):
    h = state.h
    for i, own in enumerate(p["rounds"], 1):
        W = own["W"] if "W" in own else own["left"] @ own["right"]
        if i % 2 == 1:
            x = 2 * sigmoid(h @ W + own["b"][None], xp) * x
        else:
            h = 2 * sigmoid(x @ W + own["b"][None], xp) * h
    return lstm(p, cells.LSTMState(h, state.c), x, xp)


def gru(p, h, x, xp, before=False):
    (W_r, W_z, W_n), (U_r, U_z, U_n) = columns(p["W_xh"], 3), columns(p["W_hh"], 3)
    b_r, b_z, b_n = (b[None] for b in columns(p["b_h"], 3))
    r = sigmoid(x @ W_r + h @ U_r + b_r, xp)
    z = sigmoid(x @ W_z + h @ U_z + b_z, xp)
    recurrent = (r * h) @ U_n if before else r * (h @ U_n + p["b_hn"][None])
    return (1 - z) * xp.tanh(x @ W_n + b_n + recurrent) + z * h


def mingru(p, h, x, xp):
    z, new = columns(x @ p["W_xh"] + p["b_h"][None], 2)
    return (1 - sigmoid(z, xp)) * h + sigmoid(z, xp) * new


def minlstm(p, h, x, xp):
    f, i, new = columns(x @ p["W_xh"] + p["b_h"][None], 3)
    f, i = sigmoid(f, xp), sigmoid(i, xp)
    return f / (f + i) * h + i / (f + i) * new


def diagonal(p, carry, x, xp):
    lam = xp.exp(-xp.exp(p["nu"]) + 1j * xp.exp(p["theta"]))
    B_x = x @ (p["W_xh"][:, : H // 2] + 1j * p["W_xh"][:, H // 2 :])
    s = carry[:, : H // 2] + 1j * carry[:, H // 2 :]
    s = lam[None] * s + xp.exp(p["gamma"])[None] * B_x
    return xp.concatenate([s.real, s.imag], -1)


def rglru(p, h, x, xp):
    r, i, new = columns(x @ p["W_xh"] + p["b_h"][None], 3)
    a = sigmoid(p["Lambda"], xp)[None] ** (8 * sigmoid(r, xp))
    return a * h + xp.sqrt(1 - a**2) * sigmoid(i, xp) * new


def of_sru(p, state, x, xp):
    new, f, r, highway = columns(x @ p["W_xh"] + p["b_h"][None], 4)
    f, r = (sigmoid(z + v[None] * state.c, xp) for z, v in zip((f, r), p["v"], strict=True))
    c = f * state.c + (1 - f) * new
    return sru.SRUState(r * c + (1 - r) * highway, c)


def slstm(p, state, x, xp):
    """Without a stabiliser: memory and normaliser as they are, times e^m."""
    i, f, z, o = columns(x @ p["W_xh"] + state.h @ p["W_hh"] + p["b_h"][None], 4)
    f, old = sigmoid(f, xp), xp.exp(state.m)
    c, n = f * old * state.c + xp.exp(i) * xp.tanh(z), f * old * state.n + xp.exp(i)
    m = xp.maximum(xp.log(f) + state.m, i)
    return xlstm.SLSTMState(sigmoid(o, xp) * c / n, c * xp.exp(-m), n * xp.exp(-m), m)


def mlstm(p, state, x, xp):
    """A head at a time, without a stabiliser."""
    z = x @ p["W_xh"] + p["b_h"][None]
    q, k, v, o = columns(z, 4)
    found = []
    for head in range(2):
        own, gates = slice(3 * head, 3 * head + 3), z[:, 4 * H + head :: 2]
        i, f, old = xp.exp(gates[:, 0]), sigmoid(gates[:, 1], xp), xp.exp(state.m[:, head])
        outer = xp.einsum("bv,bk->bvk", v[:, own], k[:, own] / 3**0.5)
        C = (f * old)[:, None, None] * state.C[:, head] + i[:, None, None] * outer
        n = (f * old)[:, None] * state.n[:, head] + i[:, None] * k[:, own] / 3**0.5
        scale = xp.maximum(abs(xp.einsum("bk,bk->b", n, q[:, own])), 1)
        h = sigmoid(o[:, own], xp) * xp.einsum("bvk,bk->bv", C, q[:, own]) / scale[:, None]
        m = xp.maximum(xp.log(f) + state.m[:, head], xp.log(i))
        found.append((h, C * xp.exp(-m)[:, None, None], n * xp.exp(-m)[:, None], m))
    h, C, n, m = zip(*found, strict=True)
    return xlstm.MLSTMState(xp.concatenate(h, 1), *(xp.stack(part, 1) for part in (C, n, m)))
