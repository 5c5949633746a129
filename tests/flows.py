"""Flows of small deep networks for tests, how to run one, and SciPy's answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from problems import target

from bwdln import losses, networks
from bwdln.dynamics import integrate
from bwdln.dynamics.runge_kutta import flow


def deep_problem(depth=3, width=3, tau=0.1, seed=0, spread=0.3):
    """The velocity of the layer flow, and packed weights to start from."""
    rng = np.random.default_rng(seed)
    sigma, loss = target("distinct", width, rng), losses.bures_wasserstein(tau)
    noise = rng.normal(size=(depth, width, width)) * spread / np.sqrt(width)
    weights = networks.pack(tuple(jnp.asarray(np.eye(width) + each) for each in noise))

    def velocity(packed):
        return jax.tree.map(jnp.negative, losses.layer_gradients(loss, packed, sigma))

    return velocity, weights


def trajectory(dynamics, weights, times, scale=1e6):
    """The state of one lane at each of the increasing `times`, and how it stands after the last."""

    def onward(state, until):
        state = integrate.advance(
            lambda state: integrate.step(dynamics, state, until),
            lambda state: integrate.active(dynamics, state, until),
            state,
            10**6,
        )
        return state, integrate.at(dynamics, state, until)

    last, seen = jax.lax.scan(onward, integrate.start(dynamics, weights, scale), jnp.asarray(times))
    return seen, last


def integrated(velocity, weights, times, **options):
    """`trajectory` of a flow, compiled; numbers among the options are traced."""
    numbers = {name: value for name, value in options.items() if isinstance(value, float)}
    static = tuple((name, value) for name, value in options.items() if name not in numbers)
    return _program(velocity, tuple(times), static)(weights, numbers)


@functools.lru_cache(maxsize=256)
def _program(velocity, times, static):
    def run(weights, numbers):
        dynamics = flow(velocity, networks.squared_size, end_time=times[-1], **dict(static), **numbers)
        return trajectory(dynamics, weights, times)

    return jax.jit(run)


def flat(weights):
    """Packed weights (or a trajectory of them) as rows of numbers."""
    leaves = jax.tree.leaves(weights)
    return np.concatenate([np.reshape(each, (len(each), -1)) for each in leaves], axis=1)


def by_scipy(velocity, weights, times, method="DOP853", rtol=1e-13, atol=1e-14):
    """The trajectory as rows of numbers by SciPy, and how many velocities it evaluated."""
    leaves, structure = jax.tree.flatten(weights)
    ends = np.cumsum([each.size for each in leaves])[:-1]

    def slope(_, x):
        parts = [part.reshape(like.shape) for part, like in zip(np.split(x, ends), leaves, strict=True)]
        return _row(_compiled(velocity)(jax.tree.unflatten(structure, parts)))

    found = scipy.integrate.solve_ivp(
        slope, (0, times[-1]), _row(weights), method=method, rtol=rtol, atol=atol, t_eval=times
    )
    return found.y.T, found.nfev


@functools.lru_cache(maxsize=256)
def _compiled(velocity):
    return jax.jit(velocity)


def _row(weights):
    return np.concatenate([np.ravel(each) for each in jax.tree.leaves(weights)])


def relative_errors(found, expected):
    """Errors of each row over its norm."""
    return np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
