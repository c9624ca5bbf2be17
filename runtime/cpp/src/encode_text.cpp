#include <string>
#include <vector>

#include "fastsam2/contracts.hpp"
#include "fastsam2/tracker.hpp"
#include "with_wait.hpp"

namespace fastsam2 {

Tensor encode_text(Backend& backend, const ModelSpec& spec, std::span<const std::int32_t> ids) {
  if (ids.empty() || ids.size() % kClipContext != 0) {
    throw PromptError(expected("77 token ids a text", std::to_string(ids.size()), "Pad every text"));
  }
  const auto texts = static_cast<std::int64_t>(ids.size() / kClipContext);
  const NamedTensor input{"ids", Tensor::of(ids, {texts, kClipContext})};
  return with_wait(backend.device(), [&] {
    const std::vector<Tensor> out = backend.run(GraphRole::TextEncoder, std::span(&input, 1));
    check_outputs(GraphRole::TextEncoder, spec, std::span(&input, 1), out);
    return backend.device().fetch(out)[0];
  });
}

}  // namespace fastsam2
