r"""Train a vision-language model by GRPO of TRL, so that its captions tell each image apart from similar ones.

    pip install "hf_distinct[trl]"
    accelerate launch recipes/trl_grpo.py --model_name_or_path HuggingFaceTB/SmolVLM-256M-Instruct \
        --dataset captions.json --image_root images --scorer ViT-B-32:openai --max_completion_length 48 \
        --use_peft true --lora_target_modules all-linear --output_dir outputs/vlm

You can train any vision-language model that GRPOTrainer trains: one with a processor and a chat template. The recipe
asks it --prompt about each picture, and rewards its completions with DistinctivenessReward. Besides the recipe's own
settings you can set those of TRL's GRPOConfig and ModelConfig (which has those of LoRA). The recipe writes the model,
or its adapters, to --output_dir.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from hf_distinct import emoji_scenes
from hf_distinct.distributed.gathering import unsplit
from hf_distinct.rewards.trl import DistinctivenessReward
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small
from hf_distinct.runs.dataset_settings import CLIP_FORMS, HELP, DatasetSettings
from hf_distinct.text.problems import refuse


@dataclass
class Settings(DatasetSettings):
    """What to train on, and what to reward."""

    scorer: str | None = field(
        default=None,
        metadata={
            "help": f"CLIP that gives the rewards: {CLIP_FORMS}. Default on emoji scenes: the shipped `scorer`."
        },
    )
    prompt: str = field(
        default="Describe this image in one sentence that tells it apart from similar images.",
        metadata={"help": "What the model is asked about each picture."},
    )
    memory_batches: int = field(
        default=0, metadata={"help": "Number of earlier steps whose captions and pictures are kept as negatives."}
    )
    discriminator_weight: float = field(
        default=0.0, metadata={"help": "Weight of the discriminator in the reward; 0.06 in the paper."}
    )
    train_size: int = field(default=4000, metadata={"help": HELP["train_size"]})

    def problems(self, model: ModelConfig) -> Iterator[str]:
        """A sentence for each setting that is missing or not possible."""
        if model.model_name_or_path is None:
            yield "--model_name_or_path is missing: a vision-language model, by folder or Hub id."
        yield from self.model_problems({"scorer": "scorer"})
        yield from too_small(self, train_size=2)


def main() -> None:
    """Train and save."""
    settings, training, model = parse_settings(Settings, GRPOConfig, ModelConfig, description=__doc__)
    refuse(settings.problems(model))
    with unsplit(training):
        reward = DistinctivenessReward(
            settings.models({"scorer": "scorer"})["scorer"],
            memory_batches=settings.memory_batches,
            discriminator_weight=settings.discriminator_weight,
        )
    dataset = emoji_scenes("train", settings.train_size) if settings.drawn else settings.load()["train"]
    prompt = [{"role": "user", "content": settings.prompt}]
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = GRPOTrainer(
        model.model_name_or_path,
        reward_funcs=reward,
        args=training,
        train_dataset=dataset.add_column("prompt", [prompt] * len(dataset)),
        callbacks=[reward],
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)


if __name__ == "__main__":
    with clear_errors():
        main()
