// The C interface from several threads at once.
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

#include "c_api_fixture.hpp"

namespace fastsam2::testing {
namespace {

using CApiThreads = CApi;

TEST_F(CApiThreads, ThreadsShareATracker) {
  const fastsam2_bundle bundle = open_bundle();
  fastsam2_tracker tracker{};
  ASSERT_EQ(fastsam2_tracker_open(bundle, nullptr, &tracker), FASTSAM2_OK);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 3; ++n) {
        fastsam2_result result{};
        const fastsam2_image image = frame();
        EXPECT_EQ(fastsam2_tracker_step(tracker, &image, &result), FASTSAM2_OK) << fastsam2_last_error();
        EXPECT_EQ(fastsam2_result_close(result), FASTSAM2_OK);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  fastsam2_result result{};
  const fastsam2_image image = frame();
  ASSERT_EQ(fastsam2_tracker_step(tracker, &image, &result), FASTSAM2_OK);
  fastsam2_result_view view{};
  view.struct_size = sizeof view;
  ASSERT_EQ(fastsam2_result_read(result, &view), FASTSAM2_OK);
  EXPECT_EQ(view.frame, 12);
  fastsam2_result_close(result);
  fastsam2_tracker_close(tracker);
  fastsam2_bundle_close(bundle);
}

// Stays in its first run until the test lets it go on.
struct Gate {
  std::promise<void> entered;
  std::promise<void> leave;
  std::once_flag once;
};

int32_t run_slowly(void* user, const char* role, const fastsam2_tensor* inputs, uint32_t input_count,
                   const fastsam2_tensor* outputs, uint32_t output_count, char* message, uint32_t message_bytes) {
  auto* gate = static_cast<Gate*>(user);
  std::call_once(gate->once, [gate] {
    gate->entered.set_value();
    gate->leave.get_future().wait();
  });
  return run_wave(nullptr, role, inputs, input_count, outputs, output_count, message, message_bytes);
}

// `call` runs a graph, `close` has to wait for it.
void expect_wait(Gate& gate, const std::function<void()>& call, const std::function<void()>& close) {
  std::atomic<bool> closed = false;
  std::thread caller(call);
  gate.entered.get_future().wait();
  std::thread closer([&] {
    close();
    closed = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(closed);
  gate.leave.set_value();
  caller.join();
  closer.join();
}

TEST_F(CApiThreads, ClosingWaitsForCallsInOtherThreads) {
  fastsam2_bundle_options options = options_of(FASTSAM2_BACKEND_CALLBACK);
  options.run = run_slowly;
  options.skip_hashes = 1;
  fastsam2_bundle bundle{};
  fastsam2_tracker tracker{};
  fastsam2_result result{};
  const fastsam2_image image = frame();
  const fastsam2_prompt prompt = box_prompt();
  Gate of_tracker;
  options.user = &of_tracker;
  ASSERT_EQ(fastsam2_bundle_open(folder_.c_str(), &options, &bundle), FASTSAM2_OK) << fastsam2_last_error();
  ASSERT_EQ(fastsam2_tracker_open(bundle, nullptr, &tracker), FASTSAM2_OK);
  ASSERT_EQ(fastsam2_bundle_close(bundle), FASTSAM2_OK);
  ASSERT_EQ(fastsam2_tracker_step(tracker, &image, &result), FASTSAM2_OK);  // runs no graph
  ASSERT_EQ(fastsam2_result_close(result), FASTSAM2_OK);
  expect_wait(
      of_tracker, [&] { EXPECT_EQ(fastsam2_tracker_add(tracker, 1, &prompt, &result), FASTSAM2_OK); },
      [&] { EXPECT_EQ(fastsam2_tracker_close(tracker), FASTSAM2_OK); });
  EXPECT_EQ(fastsam2_result_close(result), FASTSAM2_OK);
  EXPECT_EQ(fastsam2_tracker_reset(tracker), FASTSAM2_ERROR_HANDLE);
  Gate of_bundle;
  options.user = &of_bundle;
  ASSERT_EQ(fastsam2_bundle_open(folder_.c_str(), &options, &bundle), FASTSAM2_OK) << fastsam2_last_error();
  fastsam2_bundle_info info{};
  info.struct_size = sizeof info;
  ASSERT_EQ(fastsam2_bundle_describe(bundle, &info), FASTSAM2_OK);
  const std::vector<std::int32_t> ids(77, 0);
  std::vector<float> values(info.text_dim);
  expect_wait(
      of_bundle,
      [&] { EXPECT_EQ(fastsam2_bundle_encode_text(bundle, ids.data(), 1, values.data(), values.size()), FASTSAM2_OK); },
      [&] { EXPECT_EQ(fastsam2_bundle_close(bundle), FASTSAM2_OK); });
}

}  // namespace
}  // namespace fastsam2::testing
