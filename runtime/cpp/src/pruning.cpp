#include "pruning.hpp"

#include "policies.hpp"

namespace fastsam2 {

Pruner::Pruner(const Prune& prune, const ModelSpec& spec, Device& device)
    : prune_(prune), spec_(spec), device_(device) {
  prune.check();
  budgets_ = prune.budgets(spec.tokens());
}

Tensor Pruner::score(std::int64_t object_id, std::int64_t frame, const Tensor& logits) const {
  const auto put = [&](const std::vector<float>& scores) {
    return device_.put(Tensor::of(std::span<const float>(scores), {spec_.tokens()}));
  };
  switch (prune_.policy) {
    case PrunePolicy::Mask:
      return device_.mask_scores(logits, spec_.grid());
    case PrunePolicy::Uniform:
      return put(uniform_scores(spec_.grid()));
    case PrunePolicy::Random:
      return put(random_scores(prune_.seed, object_id, frame, spec_.tokens()));
    case PrunePolicy::Dense:
    case PrunePolicy::Pool2x2:
    case PrunePolicy::Router:
      break;
  }
  return {};
}

Kept Pruner::compact(const Tensor& rows, const Tensor& scores, std::optional<std::int64_t> keep) const {
  if (!active() || static_cast<bool>(scores) != prune_.scores_rows() || rows.size() != spec_.tokens()) {
    throw InternalError(
        expected("rows and scores of a dense frame", rows.shape().text(), "Compact a dense frame once"));
  }
  if (!scores) {
    const auto tokens = static_cast<std::int32_t>(spec_.tokens());
    return {device_.pool_2x2(rows, spec_.grid()), device_.arange(tokens, tokens + tokens / 4)};
  }
  return device_.top_k_gather(rows, scores, keep.value_or(budgets_.front()));
}

}  // namespace fastsam2
