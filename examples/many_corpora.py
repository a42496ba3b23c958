"""One model of several corpora, asked about one that it never heard.

python examples/many_corpora.py path/to/corpora out/ --corpora emodb,ravdess,mine=csv --left_out mine

Each corpus lies in the folder of its name. The model learns the words of all but one, as they stand: nothing is mapped.
Then it is asked the words of the one that was left out, also those that no other corpus has. On the command line this
is `lascl-train --corpora ... --folds mine`, with checkpoints, intervals and a report.
"""

import argparse
from pathlib import Path

from transformers import AutoFeatureExtractor, set_seed

from lascl import (
    LaSCLForAudioClassification,
    LaSCLTrainer,
    LaSCLTrainingArguments,
    load_corpora,
    make_folds,
    predict_files,
    score,
)
from lascl.data import SpeechCollator, SpeechDataset
from lascl.data.words import words_of_fold
from lascl.predict import Recogniser


def main(root: str, output_dir: str, corpora: str, left_out: str, audio_encoder: str, text_encoder: str, epochs: float):
    entries = [entry.partition("=") for entry in corpora.split(",")]
    table = load_corpora([{"name": n, "corpus": kind or n, "data_dir": str(Path(root) / n)} for n, _, kind in entries])
    fold = {fold.name: fold for fold in make_folds(table)}[left_out]  # by default each corpus is left out in turn
    words = words_of_fold(table, fold)
    set_seed(42)
    model = LaSCLForAudioClassification.from_encoders(audio_encoder, text_encoder, words)
    extractor = AutoFeatureExtractor.from_pretrained(audio_encoder, return_attention_mask=True)
    trainer = LaSCLTrainer(
        model,
        LaSCLTrainingArguments(output_dir, num_train_epochs=epochs, global_batch_size=16),
        train_dataset=SpeechDataset(
            table,
            fold.train,
            words=words,
            sampling_rate=extractor.sampling_rate,
            max_duration_s=10,
            augmentation="mixed",
        ),
        data_collator=SpeechCollator(extractor),
        processing_class=extractor,
    )
    trainer.train()
    trainer.save_model()

    names, tested = table.features["label"].names, table.select(fold.test)
    references = [names[label] for label in tested["label"]]
    asked = sorted(set(references))
    model.set_labels(asked)
    answers = [answer.label for answer in predict_files(Recogniser(model.eval(), extractor), tested["audio"])]
    found = score(answers, references, labels=asked)
    print(f"{left_out}, never heard: UA {found['ua']:.1%}")
    for word in asked:
        print(
            f"  {word:<12} recall {found['recall'][word]:.1%}{'' if word in words else ', a word that nobody trained'}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("output_dir")
    parser.add_argument("--corpora", required=True)
    parser.add_argument("--left_out", required=True)
    parser.add_argument("--audio_encoder", default="microsoft/wavlm-base-plus")
    parser.add_argument("--text_encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--epochs", type=float, default=12)
    main(**vars(parser.parse_args()))
