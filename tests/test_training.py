"""The training loop: what it trains, that it repeats, that it resumes."""

import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minivlm.parts.training import Muon, fit, hidden_matrices, minibatches, orthogonal, schedule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.body = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.2)  # so that the random state matters
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, ids):
        self.seen += 1
        return self.head(self.norm(self.drop(self.body(self.embedding(ids)))))


def loss(model, batch):
    ids, targets = batch
    return nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batches(seed: int = 0):
    ids = torch.arange(11 * 12).reshape(12, 11) % 11
    return minibatches(ids, (ids * 3 + 1) % 11, batch_size=4, seed=seed)


def state(model: nn.Module) -> torch.Tensor:
    return torch.cat([t.detach().flatten().float() for t in model.state_dict().values()])


def test_fit_learns_and_returns_one_loss_a_step():
    model = net()
    history = fit(model, batches(), loss, 150)
    assert len(history["loss"]) == len(history["grad_norm"]) == 150
    assert history["loss"][0] > 2 and history["loss"][-1] < 1
    assert not model.training


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not():
    models = [net(), net(), net()]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        fit(model, batches(), loss, 10, seed=seed)
    assert torch.equal(state(models[0]), state(models[1]))
    assert not torch.equal(state(models[0]), state(models[2]))


@pytest.mark.parametrize("stop", [5, 9, 14])
def test_an_interrupted_training_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path, stop):
    whole = net()
    expected = fit(whole, batches(), loss, 20)
    count = itertools.count()

    def stopping(model, batch):
        if next(count) == stop:
            raise KeyboardInterrupt
        return loss(model, batch)

    file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(net(), batches(), stopping, 20, checkpoint=file, every=4)
    assert len(load_file(file)["history.loss"]) == stop // 4 * 4
    resumed = net(seed=5)  # its weights come from the checkpoint
    history = fit(resumed, batches(), loss, 20, checkpoint=file, every=4)
    assert history == expected
    assert torch.equal(state(resumed), state(whole))
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_training_is_not_done_again(tmp_path):
    file = tmp_path / "state.safetensors"
    first, again = net(), net(1)
    history = fit(first, batches(), loss, 8, checkpoint=file, every=4)
    assert fit(again, batches(), loss, 8, checkpoint=file, every=4) == history
    assert torch.equal(state(first), state(again))


def test_a_checkpoint_of_another_training_and_a_broken_one_are_refused(tmp_path):
    file = tmp_path / "state.safetensors"
    fit(net(), batches(), loss, 4, checkpoint=file, every=4)
    with pytest.raises(ValueError, match="number of steps than 9"):
        fit(net(), batches(), loss, 9, checkpoint=file)
    other = net()
    other.body = nn.Linear(8, 8, bias=False)
    with pytest.raises(ValueError, match="another model"):
        fit(other, batches(), loss, 4, checkpoint=file)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="state.safetensors"):
        fit(net(), batches(), loss, 4, checkpoint=file)
    file.write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="state.safetensors"):
        fit(net(), batches(), loss, 4, checkpoint=file)


def test_frozen_parameters_do_not_move():
    model = net()
    model.body.requires_grad_(False)
    before = state(model.body).clone()
    fit(model, batches(), loss, 5)
    assert torch.equal(state(model.body), before)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(model, batches(), loss, 5)


def test_muon_gets_the_hidden_matrices_and_nothing_else():
    model = net()
    assert [id(p) for p in hidden_matrices(model)] == [id(model.body.weight)]
    tied = nn.Linear(8, 11, bias=False)
    tied.weight = model.embedding.weight
    model.tied = tied
    assert len(hidden_matrices(model)) == 1


def test_muon_calls_a_closure_for_the_gradients_and_returns_its_loss():
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    plain, closed = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    plain.pow(2).sum().backward()

    def closure():
        value = closed.pow(2).sum()
        value.backward()
        return value

    assert Muon([plain]).step() is None
    assert Muon([closed]).step(closure).item() == pytest.approx(start.pow(2).sum().item())
    assert torch.equal(plain, closed) and not torch.equal(plain, start)


def test_the_schedule_rises_then_falls_to_almost_nothing():
    values = [schedule(step, 100) for step in range(100)]
    assert max(values) == 1 and values[0] == pytest.approx(0.2)
    assert values[:5] == sorted(values[:5]) and values[5:] == sorted(values[5:], reverse=True)
    assert values[5:40] == [1] * 35
    assert 0 < values[-1] < 0.02 and values[-1] == pytest.approx(1 / 60)
    assert schedule(0, 1) == 1


def test_a_list_of_batches_is_gone_through_again_and_an_exhausted_iterator_is_an_error():
    ids = torch.arange(11)[None]
    data = [(ids, ids)] * 3
    assert len(fit(net(), data, loss, 7)["loss"]) == 7
    with pytest.raises(ValueError, match="ran out"):
        fit(net(), iter(data), loss, 7)


def test_minibatches_show_every_row_once_an_epoch_and_repeat_by_seed():
    rows = torch.arange(12)
    stream = minibatches(rows, rows * 2, batch_size=4, seed=3)
    epoch = [next(stream) for _ in range(3)]
    assert sorted(torch.cat([a for a, _ in epoch]).tolist()) == list(range(12))
    assert all(torch.equal(b, 2 * a) for a, b in epoch)
    assert torch.equal(next(minibatches(rows, batch_size=4, seed=3))[0], epoch[0][0])
    for bad in (0, 13):
        with pytest.raises(ValueError, match=str(bad)):
            next(minibatches(rows, batch_size=bad))
    with pytest.raises(ValueError, match=r"\[12, 3\]"):
        next(minibatches(rows, rows[:3], batch_size=2))


@pytest.mark.parametrize("shape", [(8, 8), (20, 6), (5, 17)])
def test_muon_takes_the_steps_of_torchs_muon_in_float32(shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    start, grads = torch.randn(shape), torch.randn(4, *shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.2}
    for parameter, optimizer in (
        (ours, Muon([ours], **options)),
        (theirs, torch.optim.Muon([theirs], **options)),
    ):
        for grad in grads:
            parameter.grad = grad.clone()
            optimizer.step()
    assert (ours - start).abs().max() > 0.05
    assert (ours - theirs).abs().max() < 1e-5


def test_muons_update_is_nearly_orthogonal_and_a_zero_gradient_stays_zero():
    singular = torch.linalg.svdvals(orthogonal(torch.randn(12, 30)))
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))
