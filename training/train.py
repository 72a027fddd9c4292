"""Train one model of the bundled pair, from scratch or from where it stopped.

    python -m training.train small --run runs/small
    python -m training.train large --run runs/large --grow-from runs/small --grow-at 0.5 --workers 2

Stage 1 (vision): the vision tower and the projector alone learn to hold, in each visual token, what the
generator knows is there. Stage 2 (joint): the answers, with the dense loss beside them; at ``--grow-at`` of
its time the decoder is doubled in depth. Learning rates follow elapsed training time, so an interrupted run
ends as it would have. Progress goes to ``metrics.jsonl`` in the run's folder; ``checkpoint.pt`` holds all
that is needed to go on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import InternVLForConditionalGeneration

from sgl_engine.demo.drawing import PATCH
from sgl_engine.demo.vocabulary import FACTS
from training.attention import packed, use_packed_attention
from training.models import (
    ALIGNED,
    DenseHeads,
    alignment_loss,
    build_model,
    copying_loss,
    grow,
    grow_both,
    on_patches,
)
from training.optimizer import MuonAdamW
from training.packing import LAYOUTS, Batch, Packer
from training.tokenizer import load_or_train

DEV_SEED = 1_000_000
DEV_BATCHES = 10
EVALUATE_EVERY = 240.0  # seconds of training
SAVE_EVERY = 120.0
LOG_EVERY = 15.0
COPYING = 5.0
"""Weight of copying a teacher's visual tokens beside the dense loss."""


@dataclass
class Progress:
    """Where a run stands; ``elapsed`` is seconds of training in this stage, ``total`` over all stages."""

    stage: str = "vision"
    step: int = 0
    pictures: int = 0
    elapsed: float = 0.0
    total: float = 0.0
    grown: bool = False
    evaluated: float = 0.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=("small", "large"))
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints and metrics")
    parser.add_argument(
        "--grow-from", type=Path, help="a run of the small model, for the large one to start from"
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        help="a folder of transformers weights to start from; where its patches have another size, their "
        "features are copied in the vision stage",
    )
    parser.add_argument("--patch", type=int, default=PATCH, help="pixels; divides the side of a picture")
    parser.add_argument("--vision-minutes", type=float, default=10)
    parser.add_argument("--joint-minutes", type=float, default=90)
    parser.add_argument(
        "--grow-at", type=float, default=0.0, help="fraction of the joint stage; 0: do not grow"
    )
    parser.add_argument("--pictures", type=int, default=8, help="per step and worker")
    parser.add_argument("--workers", type=int, default=1, help="processes with one thread each, CPU only")
    parser.add_argument("--loaders", type=int, default=0, help="processes that draw pictures ahead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bfloat16", action="store_true", help="autocast; on CPUs only with AMX or AVX512-BF16"
    )
    parser.add_argument(
        "--vision-muon",
        type=float,
        default=0.006,
        help="rate of the vision tower; a quarter in the joint stage",
    )
    parser.add_argument("--muon", type=float, default=0.012)
    parser.add_argument("--adamw", type=float, default=2e-3)
    parser.add_argument(
        "--dense", type=float, default=0.15, help="weight of the dense loss in the joint stage"
    )
    return parser.parse_args(arguments)


class Trainer:
    """One worker's share of a run."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        """Build the model, or take it from the run's checkpoint."""
        self.options, self.rank = options, rank
        self.stopping = False
        signal.signal(signal.SIGTERM, self._stop)
        self.clock: float | None = None  # when the last step's gradients were ready; None after a pause
        self.device = torch.device(options.device)
        self.tokenizer = load_or_train(options.start_from or options.run.parent / "tokenizer")
        self.packer = Packer(self.tokenizer, patch=options.patch)
        self.word_ids = {
            fact: torch.tensor([self.packer.tokens(word)[0] for word in words])
            for fact, words in ALIGNED.items()
        }
        self.progress = Progress()
        torch.manual_seed(0)
        self.model = build_model(options.model, self.tokenizer, patch=options.patch)
        self.teacher: InternVLForConditionalGeneration | None = None
        if options.start_from is not None:
            self._start_from(options.start_from)
        self.heads = DenseHeads(self.model.config.text_config.hidden_size).to(self.device)
        saved = None
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.progress = Progress(**saved["progress"])
            if self.progress.grown:
                self.model = grow(self.model)
            self.model.load_state_dict(saved["model"])
            self.heads.load_state_dict(saved["heads"])
        elif options.grow_from is not None:
            parent = torch.load(options.grow_from / "checkpoint.pt", map_location="cpu", weights_only=True)
            self.model.load_state_dict(grow_both(parent["model"]))
            self.heads.load_state_dict(parent["heads"])
            inherited = {name: parent["progress"][name] for name in ("step", "pictures", "total")}
            self.progress = Progress(stage="joint", **inherited)
        self._prepare()
        if saved is not None:
            self.optimizer.load_state_dict(saved["optimizer"])

    @property
    def checkpoint(self) -> Path:
        """Where the run is kept."""
        path: Path = self.options.run / "checkpoint.pt"
        return path

    def _start_from(self, folder: Path) -> None:
        """Take over the weights in ``folder``; their tower is the teacher where it has another grid."""
        parent = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        if parent.config.vision_config.patch_size[0] != self.options.patch:
            self.teacher = parent.to(self.device).eval().requires_grad_(False)
        self.model.load_state_dict(on_patches(parent.state_dict(), self.options.patch))

    def _prepare(self) -> None:
        self.model.to(self.device).train()
        use_packed_attention(self.model)
        self.optimizer = MuonAdamW(self.model, self.heads)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of the current stage and what to log of it."""
        features = self.model.model.get_image_features(
            batch.pixels.to(self.device), return_dict=True
        ).pooler_output
        dense, hits = self.heads(features, batch.facts.to(self.device))
        log = {"dense": dense.item()}
        if self.progress.stage == "vision" and self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher.get_image_features(batch.pixels.to(self.device), return_dict=True)
            copying = copying_loss(features, taught.pooler_output)
            dense, log["copying"] = dense + COPYING * copying, copying.item()
        if self.progress.stage == "vision":
            return dense, log | {f"fact/{n}": h for n, h in zip(FACTS, hits.tolist(), strict=True)}
        logits, labels = self.answer_logits(batch, features)
        answer = torch.nn.functional.cross_entropy(logits.float(), labels)
        embeddings = self.model.get_input_embeddings().weight
        words = alignment_loss(features, batch.facts.to(self.device), embeddings, self.word_ids)
        loss = answer + self.options.dense * (dense + words)
        return loss, log | {"answer": answer.item(), "words": words.item()}

    def answer_logits(self, batch: Batch, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (answer tokens, vocabulary) and labels (answer tokens,)."""
        ids = batch.ids.to(self.device)
        embeddings = self.model.get_input_embeddings()(ids)
        is_image = (ids == self.model.config.image_token_id)[..., None]
        embeddings = embeddings.masked_scatter(is_image, features.to(embeddings.dtype))
        with packed(batch.prefix, batch.slots):
            hidden = self.model.model.language_model(
                inputs_embeds=embeddings, position_ids=batch.positions.to(self.device), use_cache=False
            ).last_hidden_state
        labels = batch.labels.to(self.device)
        asked = labels >= 0
        return self.model.lm_head(hidden[:, batch.prefix :][asked]), labels[asked]

    def rate(self) -> float:
        """Factor on the learning rates: short warm-up, linear decay over the last half of the stage."""
        minutes = (
            self.options.vision_minutes if self.progress.stage == "vision" else self.options.joint_minutes
        )
        done = self.progress.elapsed / (60 * minutes)
        floor = 0.3 if self.progress.stage == "vision" else 0.02
        return min(1.0, (self.progress.elapsed + 2) / 20, max(floor, (1 - done) / 0.5))

    def step(self, batch: Batch) -> dict[str, float]:
        """One step on this worker's batch.

        Workers take the mean of their gradients, and of the seconds since their last step: learning rates
        follow the clock, so the clocks must agree exactly.
        """
        autocast = (
            torch.autocast(self.device.type, torch.bfloat16) if self.options.bfloat16 else nullcontext()
        )
        with autocast:
            loss, log = self.loss(batch)
        loss.backward()
        parameters = [p for p in (*self.model.parameters(), *self.heads.parameters()) if p.grad is not None]
        now = time.perf_counter()
        spent, self.clock = now - (self.clock or now), now
        if dist.is_initialized():
            flat = torch.cat(
                [*(p.grad.flatten() for p in parameters), torch.tensor([spent, float(self.stopping)])]
            )
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for p, part in zip(parameters, flat[:-2].split([p.numel() for p in parameters]), strict=True):
                p.grad.copy_(part.view_as(p))
            spent, self.stopping = float(flat[-2]), bool(flat[-1] > 0)
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        joint, rate = self.progress.stage == "joint", self.rate()
        vision = self.options.vision_muon * rate
        muon = self.options.muon * rate
        self.optimizer.step(
            *((muon, 0.25 * vision) if joint else (vision, vision)), self.options.adamw * rate
        )
        self.model.zero_grad(set_to_none=True)
        self.heads.zero_grad(set_to_none=True)
        self.progress.elapsed += spent
        self.progress.total += spent
        self.progress.step += 1
        world = dist.get_world_size() if dist.is_initialized() else 1
        self.progress.pictures += len(batch.pixels) * world
        return log | {"loss": loss.item(), "rate": rate}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Exact match per kind on held-out pictures, teacher-forced: the same as that of greedy decoding."""
        self.model.eval()
        counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        world = dist.get_world_size() if dist.is_initialized() else 1
        for index in range(self.rank, DEV_BATCHES, world):
            batch = self.packer.batch(
                DEV_SEED + index, 16, split="heldout", layout=(0, 1, 0, 1, 3)[index % 5]
            )
            features = self.model.model.get_image_features(
                batch.pixels.to(self.device), return_dict=True
            ).pooler_output
            logits, labels = self.answer_logits(batch, features)
            right = torch.zeros_like(batch.labels, dtype=torch.bool)
            right[batch.labels >= 0] = (logits.argmax(-1) == labels).cpu()
            for kind, (row, first, stop) in zip(batch.kinds, batch.answers, strict=True):
                counts[kind][0] += float(right[row, first:stop].all())
                counts[kind][1] += 1
        self.model.train()
        self.clock = None
        gathered = [dict(counts)]
        if dist.is_initialized():
            gathered = [None] * world  # type: ignore[list-item]
            dist.all_gather_object(gathered, dict(counts))
        total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for part in gathered:
            for kind, (hit, asked) in part.items():
                total[kind][0] += hit
                total[kind][1] += asked
        scores = {kind: hit / asked for kind, (hit, asked) in sorted(total.items())}
        return scores | {"mean of kinds": float(np.mean(list(scores.values())))}

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.rank == 0:
            parts = {name: getattr(self, name).state_dict() for name in ("model", "heads", "optimizer")}
            temporary = self.checkpoint.with_suffix(".tmp")
            torch.save({**parts, "progress": vars(self.progress)}, temporary)
            temporary.replace(self.checkpoint)

    def record(self, entry: dict[str, object]) -> None:
        """Append to the run's metrics and print a line."""
        if self.rank == 0:
            entry = {"stage": self.progress.stage, "step": self.progress.step, **entry}
            entry |= {"minutes": round(self.progress.total / 60, 2), "pictures": self.progress.pictures}
            with (self.options.run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in entry.items()}
            print(json.dumps(shown), flush=True)

    def train(self) -> None:
        """Run both stages to their end, or until SIGTERM."""
        stages = {"vision": self.options.vision_minutes, "joint": self.options.joint_minutes}
        for stage, minutes in stages.items():
            if self.progress.stage == stage:
                self._run_stage(60 * minutes)
                if not self.stopping and stage == "vision":
                    self.progress.stage, self.progress.elapsed = "joint", 0.0
                self.save()
        if not self.stopping:
            self.record({"dev": self.evaluate()})

    def _run_stage(self, seconds: float) -> None:
        """Steps until the stage has had its time; logs, evaluates and saves in between."""
        joint = self.progress.stage == "joint"
        saved, logged = self.progress.elapsed, self.progress.elapsed
        window: list[dict[str, float]] = []
        for batch in self._batches():
            if self.stopping or self.progress.elapsed >= seconds:
                return
            if joint and 0 < self.options.grow_at * seconds <= self.progress.elapsed:
                self._grow_once()
            window.append(self.step(batch))
            if self.progress.elapsed - logged >= LOG_EVERY:
                logged = self.progress.elapsed
                self.record({key: float(np.mean([log[key] for log in window])) for key in window[-1]})
                window.clear()
            if joint and self.progress.elapsed - self.progress.evaluated >= EVALUATE_EVERY:
                self.progress.evaluated = self.progress.elapsed
                self.record({"dev": self.evaluate()})
            if self.progress.elapsed - saved >= SAVE_EVERY:
                saved = self.progress.elapsed
                self.save()

    def _stop(self, *_: object) -> None:
        """On SIGTERM: finish the step, save, and end."""
        self.stopping = True

    def _grow_once(self) -> None:
        if not self.progress.grown:
            self.model = grow(self.model)
            self.progress.grown = True
            self._prepare()
            self.record({"grown": self.model.config.text_config.num_hidden_layers})

    def _batches(self) -> Iterator[Batch]:
        source = _Batches(self.packer, self.options.pictures, self.rank, self.progress.step)
        loader = torch.utils.data.DataLoader(source, batch_size=None, num_workers=self.options.loaders)
        return iter(loader)


class _Batches(torch.utils.data.Dataset):
    """Batch number ``i`` of a worker, for ever; every worker and step has seeds of its own."""

    def __init__(self, packer: Packer, size: int, rank: int, first: int) -> None:
        self.packer, self.size, self.rank, self.first = packer, size, rank, first

    def __len__(self) -> int:
        return 10**8

    def __getitem__(self, index: int) -> Batch:
        # The layout must be that of the other workers, so that no worker waits: draw it from the step alone.
        step = self.first + index
        layout = int(
            np.random.default_rng((step, 9)).choice(len(LAYOUTS), p=[share for *_, share in LAYOUTS])
        )
        return self.packer.batch(step * 64 + self.rank, self.size, layout=layout)


def main() -> None:
    """Start the workers, or be one."""
    options = parse()
    options.run.mkdir(parents=True, exist_ok=True)
    if "SGL_TRAINING_RANK" not in os.environ:
        load_or_train(options.start_from or options.run.parent / "tokenizer")
        (options.run / "meeting").unlink(
            missing_ok=True
        )  # a killed run leaves it, and the workers would wait
        environment = dict(os.environ, OMP_NUM_THREADS="1" if options.device == "cpu" else "8")
        jemalloc = Path("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")
        if jemalloc.exists():  # page faults are dear on small virtual machines
            environment["LD_PRELOAD"] = str(jemalloc)
            environment["MALLOC_CONF"] = (
                "thp:always,dirty_decay_ms:10000,muzzy_decay_ms:10000,oversize_threshold:0,narenas:1"
            )
        command = [sys.executable, "-m", "training.train", *sys.argv[1:]]
        workers = [
            subprocess.Popen(  # noqa: S603  # this very script
                command, env=environment | {"SGL_TRAINING_RANK": str(rank)}
            )
            for rank in range(options.workers)
        ]
        signal.signal(signal.SIGTERM, lambda *_: [worker.terminate() for worker in workers])
        codes = [worker.wait() for worker in workers]
        sys.exit(any(code != 0 for code in codes))
    rank = int(os.environ["SGL_TRAINING_RANK"])
    if options.device == "cpu":
        torch.set_num_threads(1)
    if options.workers > 1:
        meeting = (options.run / "meeting").absolute()
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.workers
        )
    Trainer(options, rank).train()


if __name__ == "__main__":
    main()
