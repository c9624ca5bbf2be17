// Tracks what is in a box of the first frame. Raw RGB frames come on standard input, masks go to OUT/00000.pgm ...
//   ffmpeg -i clip.mp4 -f rawvideo -pix_fmt rgb24 - | track_video BUNDLE WIDTHxHEIGHT X0,Y0,X1,Y1 OUT [THREADS]
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <vector>

#include <fastsam2/bundle.hpp>
#include <fastsam2/open_backend.hpp>
#include <fastsam2/tracker.hpp>

// A grey picture: 255 on the object, 0 off it.
void write_mask(const std::filesystem::path& folder, const fastsam2::Result& result) {
  const fastsam2::Tensor mask = result.masks[0];
  std::array<char, 16> name{};
  std::snprintf(name.data(), name.size(), "%05d.pgm", static_cast<int>(result.frame));
  std::ofstream file(folder / name.data(), std::ios::binary);
  file << "P5\n" << mask.shape()[1] << " " << mask.shape()[0] << "\n255\n";
  for (const bool on : mask.values<bool>()) {
    file.put(on ? '\xff' : '\0');
  }
  if (!file.flush()) {
    throw std::runtime_error("cannot write masks into " + folder.string());
  }
}

int main(int count, char** arguments) try {
  int width = 0;
  int height = 0;
  std::array<float, 4> box{};
  if (count < 5 || std::sscanf(arguments[2], "%dx%d", &width, &height) != 2 || width < 1 || height < 1 ||
      std::sscanf(arguments[3], "%f,%f,%f,%f", &box[0], &box[1], &box[2], &box[3]) != 4) {
    std::cerr << "usage: track_video BUNDLE WIDTHxHEIGHT X0,Y0,X1,Y1 OUT [THREADS] < frames.rgb\n";
    return 2;
  }
  const std::filesystem::path out = arguments[4];
  const int threads = count > 5 ? std::atoi(arguments[5]) : 0;
  std::filesystem::create_directories(out);

  const fastsam2::Manifest manifest = fastsam2::read_manifest(arguments[1]);
  fastsam2::Tracker tracker(
      fastsam2::open_backend(fastsam2::BackendName::OnnxRuntime, arguments[1], manifest, {.threads = threads}),
      manifest.model);
  std::vector<std::uint8_t> pixels(std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height));
  const fastsam2::ImageView frame{pixels.data(), height, width, std::ptrdiff_t{3} * width};
  while (std::cin.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()))) {
    const auto start = std::chrono::steady_clock::now();
    fastsam2::Result result = tracker.step(frame);
    if (result.frame == 0) {
      result = tracker.add(1, {.box = box});
    }
    const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
    write_mask(out, result);
    std::printf("frame %d score %.3f %.1f ms\n", static_cast<int>(result.frame), result.scores.values<float>()[0],
                spent.count());
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
