"""The port's side of ``peer.py``: public calls of ``transformers`` only."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sides import measure
from sides.ours import VQVAE_CASES
from sides.sizes import RATE, SIZES, label_rows, presets_of


class Port:
    """The same of the port, and nothing but its public calls."""

    run: Any
    outputs: Any

    def prepare(self, case: str, size: str, folder: str) -> dict[str, Any]:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import safetensors.torch
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
        from transformers.models.deprecated.jukebox import (  # pyright: ignore[reportMissingImports]
            configuration_jukebox,
            modeling_jukebox,
        )

        torch.set_num_threads(measure.THREADS)
        torch.manual_seed(0)
        self.torch, self.folder, self.size = torch, Path(folder), SIZES[size]
        self.configuration: Any = configuration_jukebox
        self.modeling: Any = modeling_jukebox
        self.vqvae, self.prior = presets_of(self.size)
        self.inputs = {k: torch.from_numpy(v) for k, v in np.load(self.folder / "inputs.npz").items()}
        weights = {}
        for file in (self.folder / "port").glob("*.safetensors"):
            weights |= safetensors.torch.load_file(str(file))
        if case in VQVAE_CASES:
            self._prepare_vqvae(case, {name.removeprefix("vqvae."): w for name, w in weights.items()})
        else:
            self._prepare_prior(case, {name.removeprefix("priors.0."): w for name, w in weights.items()})
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def _prepare_vqvae(self, case: str, weights: Any) -> None:
        c, audio = self.vqvae, self.inputs["audio"]
        config = self.configuration.JukeboxVQVAEConfig(
            sample_length=audio.shape[1], res_conv_width=c.width, res_conv_depth=c.depth, embed_dim=c.codebook_dim,
            nb_discrete_codes=c.codebook_size,
        )  # fmt: skip
        model = self.modeling.JukeboxVQVAE(config).train(case == "vqvae_train")
        model.load_state_dict(weights, strict=True)
        if case == "encode":
            self.run = lambda: self._no_grad(lambda: model.encode(audio))
            self.outputs = lambda: {f"codes_{i}": codes.numpy() for i, codes in enumerate(self.run())}
        elif case == "decode":
            codes = self.inputs["codes"].long()
            levels = [codes, codes[:, ::4], codes[:, ::16]]  # only the first is decoded
            self.run = lambda: self._no_grad(lambda: model.decode(levels))
            self.outputs = lambda: {"audio": self.run().numpy()}
        else:
            self._train(model, lambda: self._vqvae_loss(model, audio))

    def _vqvae_loss(self, model: Any, audio: Any) -> Any:
        """The training loss of the VQ-VAE on the port's outputs (paper section 3)."""
        torch, c = self.torch, self.vqvae
        outputs, commitment = model(audio)
        loss = c.commitment_weight * commitment
        for output in outputs:
            squares = ((output - audio) ** 2).flatten(1)
            loss = loss + (squares.mean() + c.lmix_linf * squares.topk(c.linf_k, dim=1).values.mean()) / 0.02
            for n_fft, hop, window in c.resolutions:

                def spectrum(x: Any, n_fft: int = n_fft, hop: int = hop, window: int = window) -> Any:
                    hann = torch.hann_window(window)
                    return torch.stft(x.mean(-1), n_fft, hop, window, hann, return_complex=True).abs()

                distance = (spectrum(audio) - spectrum(output)).flatten(1).norm(dim=1)
                loss = loss + c.multispectral_weight * distance.mean() / len(c.resolutions) / 400.0
        return loss

    def _prepare_prior(self, case: str, weights: Any) -> None:
        t = self.prior.transformer
        config = self.configuration.JukeboxPriorConfig(
            level=0, attention_multiplier=0.25, attention_pattern="raw_column_previous_row_attention",
            blocks=t.num_blocks, num_layers=t.depth, hidden_size=t.width, is_encoder_decoder=False, mask=True,
            merged_decoder=False, metadata_conditioning=True, metadata_dims=[120, 4111], max_nb_genres=5,
            timing_dims=128, music_vocab_size=self.prior.codebook_size, n_ctx=t.length, n_heads=t.num_heads,
            nb_relevant_lyric_tokens=0, min_duration=60.0, max_duration=600.0, sampling_rate=RATE,
        )  # fmt: skip
        self.modeling.tqdm = self._progress
        self.marks: list[float] = []
        model = self.modeling.JukeboxPrior(config, level=0, nb_priors=3).train(case == "train")
        model.load_state_dict(weights, strict=True)
        assert model.sample_length == self.prior.window_samples
        # The library's forward fails without lyrics: its encoder loss reads the device of None.
        model.get_encoder_loss = lambda h, y: self.torch.zeros(())
        self.model = model
        codes, rows = self.inputs["codes"].long(), self.size["batch"]
        if case == "train":
            y = self._labels(rows)
            return self._train(model, lambda: model.forward_tokens(codes[:rows], [], y)[0])
        end = t.length
        greedy = partial(self._sample, 1, 0, 2 * self.size["new"] // 4, top_k=1)
        self.outputs = lambda: {"greedy": greedy(), "primed": self._sample(1, end - 16, 16, top_k=1)}
        return None

    def _labels(self, batch: int) -> Any:
        return self.torch.from_numpy(label_rows(batch, self.prior.window_samples)).long()

    def _no_grad(self, function: Any) -> Any:
        with self.torch.no_grad():
            return function()

    def _train(self, model: Any, loss_of: Any) -> None:
        optimizer = self.torch.optim.Adam(model.parameters(), lr=3e-4)

        def run() -> None:
            loss_of().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def outputs() -> dict[str, np.ndarray]:  # in training the port's first forward draws new codebooks
            model.eval()
            loss = self._no_grad(loss_of)
            model.train()
            return {"loss": loss.numpy()}

        self.run, self.outputs = run, outputs

    def _progress(self, iterable: Any, **_: Any) -> Any:
        return _Marks(iterable, self.marks)

    def output(self) -> None:
        np.savez(self.folder / "peer.npz", **self.outputs())  # pyright: ignore[reportArgumentType]

    def time(self) -> float:
        return measure.seconds(self.run)

    def _sample(self, batch: int, given: int, new: int, top_k: int = 0, chunk: int | None = None) -> np.ndarray:
        prompt = {"music_tokens": self.inputs["codes"][:batch, :given].long()} if given else {}
        codes = self._no_grad(
            lambda: self.model.sample(
                batch, metadata=self._labels(batch), top_k=top_k, sample_tokens=given + new, chunk_size=chunk, **prompt
            )
        )
        return codes.numpy()

    def sample(self, batch: int, given: int, new: int, chunk: int | None = None) -> float:
        """Seconds. ``chunk``: codes of a prompt at a time; a prior's ``sample`` takes all, a whole model's 32."""
        return measure.seconds(lambda: self._sample(batch, given, new, chunk=chunk))

    def first_and_last(self) -> list[float]:
        self.marks.clear()
        self._sample(1, 0, self.prior.context_length)
        new = self.size["new"]
        return [self.marks[new] - self.marks[0], self.marks[-1] - self.marks[-1 - new]]


class _Marks:
    """An iterable that notes when each item was asked for, in place of a progress bar."""

    def __init__(self, iterable: Any, marks: list[float]):
        self.iterable, self.marks = iterable, marks

    def __iter__(self) -> Any:
        for item in self.iterable:
            self.marks.append(time.perf_counter())
            yield item
        self.marks.append(time.perf_counter())

    def set_description(self, *_: Any, **__: Any) -> None:
        pass
