// plan.hpp for Python: the launch of the solver for given sizes.
#include <cstdint>

#include "cuda/plan.hpp"

extern "C" int arcflow_plan(const std::int64_t* sizes, std::int64_t* launch) {
  arcflow::cuda::AdvancePlan plan;
  if (!arcflow::cuda::plan_advance(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5] != 0, &plan)) return 0;
  launch[0] = static_cast<std::int64_t>(plan.variant);
  launch[1] = plan.tokens_per_block;
  launch[2] = plan.blocks;
  launch[3] = plan.shared_bytes;
  return 1;
}
