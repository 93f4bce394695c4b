"""Training of the testbed model from nothing: ``python -m prunebench_models.testbed.train --out DIR``.

Three phases, each of which resumes where a killed run left it:

- ``towers``: the vision and the audio tower learn what lies under each media token, and are frozen.
- ``core``: a decoder of six layers learns to answer, from many questions per scene packed into one sequence.
- ``grown``: ten layers are inserted at irregular places. They are skipped at random, alone and together, so that they
  stay dispensable, and are steered to planted update sizes. Where a silent-critical layer is skipped in a domain that
  is to rest on it, training asks for wrong answers; in the other domains it is skipped like a dispensable layer.

``DIR/model`` then holds what ships in ``weights``, and ``DIR/training_log.jsonl`` what it took.
"""
