"""The statistics of the updates between two rows of the journal."""

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.training.state import add, empty_record

NONE = jnp.zeros((), jnp.int32)


def recorded(steps):
    """A record of (tokens, nats a token, norm) of some updates, added up by the compiled step."""

    @jax.jit
    def one_more(record, tokens, loss, norm):
        return add(
            record,
            tokens=tokens,
            loss=loss,
            grad_norm=norm,
            clipped_norm=norm / 2,
            clipped=NONE,
            rate=loss,
            deltas=jnp.stack([norm, 3 * norm]),
        )

    record = empty_record(2)
    for tokens, loss, norm in steps:
        record = one_more(record, jnp.int32(tokens), jnp.float32(loss), jnp.float32(norm))
    return record


def test_more_tokens_than_a_word_holds_are_counted():
    """Five adds of 2^29 pass 2^31, and nine of them 2^32."""
    for adds in (1, 4, 5, 9, 20):
        with jax.enable_x64(False):
            record = recorded([(2**29, 1.5, 1.0)] * adds)
        assert record.tokens == adds * 2**29
        np.testing.assert_allclose(record.nats, 1.5, rtol=1e-6)
    odd = recorded([(2**31 - 1, 0.0, 1.0), (2**31 - 1, 0.0, 1.0), (3, 0.0, 1.0)])
    assert odd.tokens == 2**32 + 1


def test_the_loss_of_a_record_is_the_mean_over_its_tokens():
    np.testing.assert_allclose(recorded([(1, 2.0, 1.0), (3, 6.0, 1.0)]).nats, (2 + 3 * 6) / 4)


def test_a_long_record_loses_no_digits():
    """A million updates of 4,096 tokens, half at 1.2 nats and half at 1.6, in float32."""

    def one_more(n, record):
        one, loss = jnp.float32(1), jnp.where(n % 2, 1.2, 1.6).astype(jnp.float32)
        same = {"grad_norm": one, "clipped_norm": one, "clipped": NONE, "rate": one}
        return add(record, tokens=jnp.int32(4096), loss=loss, **same)

    with jax.enable_x64(False):
        record = jax.jit(lambda: jax.lax.fori_loop(0, 10**6, one_more, empty_record()))()
    np.testing.assert_allclose(record.nats, 1.4, rtol=1e-5)
    assert record.tokens == 4096 * 10**6


def test_the_mean_of_norms_is_one_where_their_sum_is_none():
    """In float32 two norms of 3e38 have no sum."""
    for scale in (1e-30, 1.0, 1e38):
        norms = scale * np.array([1.0, 3.0, 2.0], np.float32)
        with jax.enable_x64(False):
            record = recorded([(4, 1.0, norm) for norm in norms])
        np.testing.assert_allclose(record.grad_norm / norms[0], 2, rtol=1e-6)
        np.testing.assert_allclose(record.clipped_norm / norms[0], 1, rtol=1e-6)
        np.testing.assert_allclose(record.grad_norm_max / norms[0], 3, rtol=1e-6)
        assert record.deltas.dtype == jnp.float32
        np.testing.assert_allclose(record.deltas[0] / norms[0], 2, rtol=1e-6)
