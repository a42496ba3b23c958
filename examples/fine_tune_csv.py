"""Fine-tunes on recordings of your own, from Python: `python examples/fine_tune_csv.py manifest.csv out/`.

The manifest has the columns path, label and speaker. The first of five folds is trained: its speakers are not heard
before they are tested. What is left in `out/` is a checkpoint, for `lascl-predict out/ recordings/` and for
transformers' pipeline.
"""

import argparse

from transformers import AutoFeatureExtractor, set_seed

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments, load_corpus, make_folds
from lascl.data import SpeechCollator, SpeechDataset


def main(manifest: str, output_dir: str, audio_encoder: str, text_encoder: str, epochs: float):
    corpus = load_corpus("csv", manifest)  # every file is decoded once; a broken one is said now
    fold = make_folds(corpus)[0]
    set_seed(42)  # projections and classifier start at random
    labels = corpus.features["label"].names
    model = LaSCLForAudioClassification.from_encoders(audio_encoder, text_encoder, labels)
    extractor = AutoFeatureExtractor.from_pretrained(audio_encoder, return_attention_mask=True)
    audio = {"sampling_rate": extractor.sampling_rate, "max_duration_s": 10}
    trainer = LaSCLTrainer(
        model,
        LaSCLTrainingArguments(output_dir, num_train_epochs=epochs, global_batch_size=16, eval_strategy="epoch"),
        train_dataset=SpeechDataset(corpus, fold.train, augmentation="mixed", num_views=2, **audio),
        eval_dataset=SpeechDataset(corpus, fold.test, **audio),  # watched, and chooses nothing
        data_collator=SpeechCollator(extractor),
        processing_class=extractor,
    )
    trainer.train()
    trainer.save_model()
    print({name: round(value, 3) for name, value in trainer.evaluate().items() if name in ("eval_wa", "eval_ua")})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("output_dir")
    parser.add_argument("--audio_encoder", default="microsoft/wavlm-base-plus")
    parser.add_argument("--text_encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--epochs", type=float, default=12)
    main(**vars(parser.parse_args()))
