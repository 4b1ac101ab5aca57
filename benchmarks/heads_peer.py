"""The reference's training step, for `benchmarks/heads.py`: run by the Python of an environment that has it.

    python -m venv PEER && PEER/bin/pip install tf-bind-transformer==0.0.118 pyBigWig pybedtools

The smallest shim that lets today's packages import it: one name that enformer-pytorch no longer has, and never calls
here. The trunk is an Enformer of the right width; its embeddings are numbers that are put into the reference's own
cache of sequences before the first step, so that each step is a hit. Speaks JSON lines: "step" asks for one step.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Prepare, say so, then make one step for each line read."""
    case = json.loads(sys.argv[1])
    os.environ["TF_BIND_CACHE_PATH"] = case["cache"]
    import enformer_pytorch.finetune as finetune
    import torch

    finetune.unfreeze_last_n_layers_ = lambda *unused: None
    from enformer_pytorch import Enformer
    from tf_bind_transformer import AdapterModel
    from tf_bind_transformer.optimizer import get_optimizer

    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    n_bins, dim = case["n_bins"], case["dna_dim"]
    trunk = Enformer.from_hparams(dim=dim // 2, depth=1, heads=8, target_length=n_bins, dim_divisible_by=16)
    model = AdapterModel(
        enformer=trunk, aa_embed_dim=case["protein_dim"], contextual_embed_dim=case["context_dim"], binary_target=True
    )
    optimizer = get_optimizer(model.parameters())
    batch, n_factors = case["batch"], case["factors"]
    sequences = torch.randint(0, 4, (case["windows"], n_bins * 128))
    proteins = torch.randn(n_factors, case["residues"], case["protein_dim"])
    contexts = torch.randn(2, case["context_dim"])
    generator = torch.Generator().manual_seed(1)

    def fill(*unused: object, **options: object) -> torch.Tensor:
        return torch.randn(n_bins, dim)

    def step(number: int, *, learn: bool = True) -> float:
        rows = torch.randint(len(sequences), (batch,), generator=generator)
        own = (torch.arange(batch) + number) % n_factors
        loss, _ = model(
            sequences[rows],
            aa_embed=proteins[own],
            aa_mask=torch.ones(batch, case["residues"], dtype=torch.bool),
            contextual_embed=contexts[own % 2],
            target=(own % 2).float(),
        )
        if learn:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return float(loss)

    forward, trunk.forward = trunk.forward, fill
    model.train()
    for at in range(len(sequences)):  # misses fill the cache; the first call also empties it
        with torch.no_grad():
            from tf_bind_transformer.tf_bind_transformer import cache_enformer_forward

            cache_enformer_forward(fill)(sequences[at : at + 1])
    trunk.forward = forward
    for number, _ in enumerate(sys.stdin, start=-1):
        cpu, wall = time.process_time(), time.perf_counter()
        loss = step(number)
        said = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "loss": loss}
        print(json.dumps(said), flush=True)


main()
