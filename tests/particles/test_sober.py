"""Evaluation mode for a while, whoever else asks for it meanwhile."""

from __future__ import annotations

import threading

import torch
from torch import nn

import bella
from bella.particles.sober import evaluating


def modes(module):
    return [part.training for part in module.modules()]


def test_modules_return_to_the_mode_that_each_was_in():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    network[1][0].eval()
    before = modes(network)
    with evaluating(network), evaluating(network[1]):
        assert not any(modes(network))
    assert modes(network) == before


def test_the_last_block_that_holds_a_module_puts_it_back():
    network = nn.Sequential(nn.Dropout()).train()
    one, other = evaluating(network), evaluating(network)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not any(modes(network))
    other.__exit__(None, None, None)
    assert all(modes(network))


def test_what_is_put_into_training_inside_a_block_is_so_after_one_within():
    network = nn.Sequential(nn.Dropout()).train()
    with evaluating(network):
        network.train()
        with evaluating(network):
            assert not any(modes(network))
        assert all(modes(network))
    assert all(modes(network))


def test_threads_that_predict_a_network_in_training_see_no_dropout():
    network = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    posterior = bella.low_rank(network, 3, 2, ("0",), b_std=0.3)
    x = torch.randn(5, 4)
    expected = bella.predict(posterior.eval(), x).probs
    posterior.train()
    wrong = []

    def ask():
        for _ in range(40):
            if not torch.equal(bella.predict(posterior, x).probs, expected):
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(modes(posterior.network))
