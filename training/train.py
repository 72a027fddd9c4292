"""Train one model of the bundled pair on pages, from a folder of weights or from where it stopped.

    python -m training.train small --run runs/small --start WEIGHTS/small --minutes 30
    python -m training.train large --run runs/large --start WEIGHTS/large --deepen --minutes 90

Pages are drawn as they are needed and are never used twice. At first only the decoder learns; with
``--tower`` the vision tower does too, at that share of the rate. Minutes are processor time, so that other
work on the machine changes nothing but the wall clock; the learning rate is constant up to ``--decay-from``
of them and then falls to 2 %. ``--thin`` leaves visual tokens out of that share of the batches from
``--thin-from`` of the minutes on; ``--hard`` shows more of what is learnt slowly. A run stops on SIGTERM
after the current step and goes on when the same command is given again. Under ``torchrun --nproc-per-node 2
-m training.train`` each process takes a batch of every step; minutes are then those of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from training.attention import use_packed_attention
from training.dense import DOCUMENT, DenseHeads
from training.evaluate import exact_matches, heldout_batches
from training.models import deepen, read, towers, visual_tokens
from training.optimizer import MuonAdamW
from training.packing import Batch, Packer
from training.peers import Peers
from training.vocabulary import extend, widen_embedding

LOG_EVERY, SAVE_EVERY = 20.0, 90.0
"""Seconds of training."""
WARM_UP = 15
"""Steps."""
JEMALLOC = Path("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")
MALLOC = "thp:always,dirty_decay_ms:10000,muzzy_decay_ms:10000,oversize_threshold:0,narenas:1"


@dataclass
class Progress:
    """Where a run stands; ``seconds`` are of processor time."""

    step: int = 0
    pages: int = 0
    answers: int = 0
    seconds: float = 0.0
    evaluated: float = 0.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=("small", "large"))
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints and metrics")
    parser.add_argument("--start", type=Path, required=True, help="folder of transformers weights")
    parser.add_argument("--deepen", action="store_true", help="twice as many decoder layers as in --start")
    parser.add_argument("--branch", type=Path, help="a run whose checkpoint this one starts from")
    parser.add_argument("--minutes", type=float, default=60, help="of processor time, in all")
    parser.add_argument("--decay-from", type=float, default=0.5, help="share of the minutes")
    parser.add_argument("--muon", type=float, default=0.005)
    parser.add_argument("--adamw", type=float, default=1e-3)
    parser.add_argument("--tower", type=float, default=0.0, help="the tower's rate, as a share; 0: frozen")
    parser.add_argument(
        "--dense", type=float, default=0.3, help="weight of the dense loss, where the tower learns"
    )
    parser.add_argument(
        "--bound", type=float, default=0.0, help="weight of the same loss at a decoder layer, across tiles"
    )
    parser.add_argument(
        "--only-tower", action="store_true", help="the dense loss alone: six times as many steps a minute"
    )
    parser.add_argument("--thin", type=float, default=0.0, help="share of batches with tokens missing")
    parser.add_argument("--thin-from", type=float, default=0.67, help="share of the minutes")
    parser.add_argument(
        "--late", type=float, default=0.0, help="share of those in which tokens go missing behind a layer"
    )
    parser.add_argument("--hard", type=float, default=0.0, help="share of batches of what is learnt slowly")
    parser.add_argument("--evaluate-every", type=float, default=5, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="no bfloat16: for CPUs without its units")
    return parser.parse_args(arguments)


class Trainer:
    """A run."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Read the run's checkpoint, or make its beginning from ``--start`` (or ``--branch``)."""
        self.options, self.progress, self.stopping = options, Progress(), False
        self.peers = Peers()
        signal.signal(signal.SIGTERM, self._stop)
        torch.manual_seed(options.seed)
        with self.peers.first_alone():  # it writes the tokenizer, which the others read
            self.tokenizer, self.model = begin(options)
        self.packer = Packer(self.tokenizer)
        use_packed_attention(self.model)
        for parameter in towers(self.model):
            parameter.requires_grad_(options.tower > 0)
        self.optimizer = MuonAdamW(self.model)
        self.heads = DenseHeads(self.model.config.text_config.hidden_size, self.tokenizer)
        self.binding = DenseHeads(self.model.config.text_config.hidden_size, self.tokenizer)
        readers = [*self.heads.parameters(), *self.binding.parameters()]
        self.heads_optimizer = torch.optim.AdamW(readers, betas=(0.9, 0.98), weight_decay=0.0)
        source = self.checkpoint if self.checkpoint.exists() else None
        if source is None and options.branch is not None:
            source = options.branch / "checkpoint.pt"
        if source is not None:
            saved = torch.load(source, map_location="cpu", weights_only=True)
            self.progress = Progress(**saved["progress"])
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if "binding" in saved:
                self.heads.load_state_dict(saved["heads"])
                self.binding.load_state_dict(saved["binding"])
                self.heads_optimizer.load_state_dict(saved["heads_optimizer"])

    @property
    def checkpoint(self) -> Path:
        """Where the run is kept."""
        path: Path = self.options.run / "checkpoint.pt"
        return path

    @property
    def done(self) -> float:
        """Share of the minutes that have passed."""
        return self.progress.seconds / (60 * self.options.minutes)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Of the answers, and of what the visual tokens hold where the tower learns."""
        learns = self.options.tower > 0
        with torch.set_grad_enabled(learns):
            features = visual_tokens(self.model, batch)
        total, log = features.new_zeros(()), {}
        if not self.options.only_tower:
            made = read(self.model, batch, features)
            total = nn.functional.cross_entropy(made.logits.float(), made.labels)
            log["loss"] = total.item()
            if self.options.bound > 0:
                bound, known = self.binding(made.bound.flatten(0, 1), made.facts.flatten(0, 1))
                log |= {
                    "bound": bound.item(),
                    "known": known.mean().item(),
                    "document": known[DOCUMENT].item(),
                }
                total = total + self.options.bound * bound
        if learns:
            embeddings = self.model.get_input_embeddings().weight
            if self.options.only_tower:  # the decoder, which knows its words as they are, stands still
                embeddings = embeddings.detach()
            dense, seen = self.heads(features.flatten(0, 1), batch.facts.flatten(0, 1), embeddings)
            log |= {"dense": dense.item(), "read": seen.mean().item()}
            total = total + self.options.dense * dense
        return total, log

    def step(self) -> dict[str, float]:
        """One step; returns its losses."""
        seed, progress = self.options.seed * 10_000_000 + self.progress.step, self.progress
        missing, hard = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 2))
        thin = self.done >= self.options.thin_from and missing.random() < self.options.thin
        batch = self.packer.batch(
            seed,
            part=self.peers.rank,
            thin=thin,
            late=missing.random() < self.options.late,
            hard=hard.random() < self.options.hard,
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=not self.options.float32):
            loss, log = self.loss(batch)
        loss.backward()
        self.peers.average([*self.model.parameters(), *self.heads.parameters(), *self.binding.parameters()])
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], 2.0)
        rate = self.rate()
        muon = self.options.muon * rate
        self.optimizer.step(muon, self.options.tower * muon, self.options.adamw * rate)
        for group in self.heads_optimizer.param_groups:
            group["lr"] = 2 * self.options.adamw * rate
        self.heads_optimizer.step()
        self.heads_optimizer.zero_grad()
        self.model.zero_grad(set_to_none=True)
        progress.step += 1
        progress.pages += self.peers.count * len(batch.kept)  # of one size in all processes
        progress.answers += self.peers.count * len(batch.answers)  # about
        return log

    def rate(self) -> float:
        """Factor on the learning rates."""
        decay = (1 - self.done) / max(1e-6, 1 - self.options.decay_from)
        return min(1.0, (self.progress.step + 1) / WARM_UP, max(0.02, decay))

    def train(self) -> None:
        """Steps until the minutes are over, or until SIGTERM."""
        if self.progress.step == 0:
            self.evaluate()
        window: list[dict[str, float]] = []
        logged = saved = self.progress.seconds
        while self.done < 1 and not self.stopping:
            start = time.process_time()
            window.append(self.step())
            taken_s, self.stopping = self.peers.agree(time.process_time() - start, stop=self.stopping)
            self.progress.seconds += taken_s
            if self.progress.seconds - logged > LOG_EVERY:
                logged = self.progress.seconds
                means = {name: round(float(np.mean([log[name] for log in window])), 4) for name in window[0]}
                self.record({**means, "rate": round(self.rate(), 3)})
                window.clear()
            if self.progress.seconds - self.progress.evaluated > 60 * self.options.evaluate_every:
                self.progress.evaluated = self.progress.seconds
                self.evaluate()
            if self.progress.seconds - saved > SAVE_EVERY:
                saved = self.progress.seconds
                self.save()
        self.save()
        if not self.stopping:
            self.evaluate()

    def evaluate(self) -> None:
        """Exact match on held-out pages into the metrics."""
        if self.peers.rank > 0:
            return
        self.model.eval()
        scores = exact_matches(self.model, heldout_batches(self.packer), bfloat16=not self.options.float32)
        self.model.train()
        self.record({"dev": scores})

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.peers.rank > 0:
            return
        temporary = self.checkpoint.with_suffix(".tmp")
        names = ("model", "optimizer", "heads", "binding", "heads_optimizer")
        parts = {name: getattr(self, name).state_dict() for name in names}
        torch.save({**parts, "progress": vars(self.progress)}, temporary)
        temporary.replace(self.checkpoint)

    def record(self, entry: dict[str, Any]) -> None:
        """Append to the run's metrics and print a line."""
        if self.peers.rank > 0:
            return
        minutes = round(self.progress.seconds / 60, 2)
        place = {"step": self.progress.step, "minutes": minutes, "pages": self.progress.pages}
        line = json.dumps({**place, "clock": time.strftime("%H:%M:%S"), **entry})
        with (self.options.run / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def _stop(self, *_: object) -> None:
        self.stopping = True


def begin(options: argparse.Namespace) -> tuple[PreTrainedTokenizerFast, InternVLForConditionalGeneration]:
    """Tokenizer and model as a run starts with them."""
    model = InternVLForConditionalGeneration.from_pretrained(options.start, dtype=torch.float32)
    old = PreTrainedTokenizerFast.from_pretrained(options.start)
    folder = options.run / "tokenizer"
    new = (
        PreTrainedTokenizerFast.from_pretrained(folder) if folder.exists() else extend(options.start, folder)
    )
    if len(new) > len(old):
        widen_embedding(model, old, new)
    model = deepen(model) if options.deepen else model
    model.config.save_pretrained(options.run)
    return new, model


def main() -> None:
    """Train, with jemalloc where it is installed: page faults are dear on small virtual machines."""
    options = parse()
    options.run.mkdir(parents=True, exist_ok=True)
    if JEMALLOC.exists() and "LD_PRELOAD" not in os.environ:
        environment = os.environ | {"LD_PRELOAD": str(JEMALLOC), "MALLOC_CONF": MALLOC}
        os.execve(sys.executable, [sys.executable, "-m", "training.train", *sys.argv[1:]], environment)  # noqa: S606
    torch.set_num_threads(1)
    Trainer(options).train()


if __name__ == "__main__":
    main()
