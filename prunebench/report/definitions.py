"""What is said under every table: how its numbers were made."""

from __future__ import annotations

from prunebench.budget import ROUNDING
from prunebench.report.markdown import MISSING

__all__ = ["DEFINITIONS", "KINDS", "LOG_SCALE", "RANKINGS"]

RANKINGS = {"chance_corrected": "chance-corrected relative score", "plain": "plain relative score"}

DEFINITIONS = f"""## How to read these tables

- **Relative, plain**: 100 × mean over tasks of score / dense score (dense / score where lower is better).
- **Relative, chance-corrected**: 100 × mean over tasks of (score − chance) / (dense score − chance). A model that only
  guesses has 0; below 0 is worse than guessing. Tasks weigh as the suite says, the same unless it does. Rows are ranked
  by it, equal ones by the plain one; where it is not defined (a task without a chance level, or dense not above chance)
  rows are ranked by the plain one. [ ] is the 95 % interval of the score that ranks, the dense model's scores being as
  uncertain as the row's own.
- **Task columns**: score with its 95 % interval over questions. † marks an interval that reaches down to the score of
  always giving the most common answer.
- **Band**: a strategy run with several seeds: mean (lowest to highest) over seeds, placed by its mean, without a rank.
- {MISSING} means not measured or not defined; it is never a zero and never enters a mean. A column that no record
  fills is left out. A row that failed or lacks tasks or questions has no relative score and no rank.
- **Differences** are paired by question (mean ± Student's t × the standard error of a bootstrap within tasks, dense
  scores and chance taken as fixed), in points of the score that ranks, each with an interval of its own. Questions of a
  task that share an image or a video are resampled, and tested, together; tasks count as independent of each other.
- **p (Holm)**: paired permutation test of the difference to the best row (exact McNemar where one task has 0/1 scores,
  else at most 9,999 random flips, so that none is below the number of rows / 10,000), adjusted by Holm's method for the
  number of rows; that the best row was seen to be best on the same questions is not allowed for. A row is *told apart*
  from another at an adjusted p of at most 0.05. **Tie group** `a` is the best row and what is not told apart from it;
  `b` is the best of the rest and what, of that rest, is not told apart from it; and so on. **p against** random plans:
  (1 + draws at least as high) / (1 + draws), not adjusted. **Detected** differences are found with 80 % power by one
  two-sided test at 5 %; the median over rows.
- **Ratios** (×): for times dense / pruned, both timed in turn in one process, so that above 1 is faster; for memory
  pruned / dense, so that below 1 is smaller. Times are medians.
- **Search s**: seconds of calibration, shared by all strategies of a run, + seconds of scoring and selecting layers.
- **Recovery** is what was done to a pruned model before it was asked: a closed form, or training on calibration
  samples. Rows are ranked among their own kind and token budget alone, beside the dense model trained on that budget.
  Tokens are those that went through the model, without padding.
- Layers are numbered from 0 as in the dense model. A share of layers is rounded to a number of layers ({ROUNDING})."""

KINDS = """**Kinds that remove no layers** are ranked among themselves alone: a mask of half of the weights, half of the
layers and half of the width are not the same cut (`prunebench leaderboard --match bytes` compares across kinds).

- **Weights zeroed**: share of the weights of the linear maps inside decoder layers; **whole model zeroed**: of all its
  parameters. **Kept widths**: key-value head groups and MLP channels, least to most of the layers that were sliced.
- **On disk**: bytes of all weights as safetensors write them; **compressed**: each tensor in the smaller exact form of
  its values, or a bitmask with the values that are not zero. Ratios are to the dense model's plain bytes.
- **Time**: a plan that only makes weights zero changes no shape, so the dense model's kernels run and it is not timed:
  1.00×, whatever its sparsity. A measured ratio stands where a sparse kernel ran, which is then named.
- **Forward and backward passes** are single samples through the model, also where a pass was stopped early. **Search
  peak memory** is the most that was held while the plan was found: on a GPU all that torch had allocated, the dense
  model included, elsewhere what was counted beside it."""

LOG_SCALE = """A perplexity is exp(mean negative log-likelihood per token), so rows are compared by its logarithm:
**chance-corrected** is 100 × (ln score − ln chance) / (ln dense − ln chance), where chance is the perplexity of a
uniform guess, the size of the vocabulary. It is the share that is left of the nats per token which the dense model
saves over guessing; below 0 the pruned model is worse than guessing. **Plain** is 100 × dense / score. Means over seeds
are geometric. The interval is a bootstrap over windows of text; a question is one window."""
