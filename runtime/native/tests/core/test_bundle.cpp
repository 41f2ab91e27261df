// Bundles against files that change: what was checked is what is used, or there is an Error.
// tests/native/core/test_bundle.py has the table of damaged bundles that Python reads as well.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "core/bundle/bundle.hpp"
#include "core/bundle/names.hpp"
#include "core/bundle/sha256.hpp"
#include "core/error.hpp"

using namespace arcflow::core;
namespace fs = std::filesystem;

namespace {

void write(const fs::path& path, const std::string& data) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << data;
}

std::string text(const Blob& blob) { return std::string(static_cast<const char*>(blob.data()), blob.size()); }

// A bundle of a few bytes in a folder of its own, which goes when this does: the embedded one's manifest over files
// that each hold their own name.
struct SmallBundle {
  fs::path folder, root;

  SmallBundle() {
    std::string pattern = (fs::temp_directory_path() / "arcflow-bundle-XXXXXX").native();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    folder = pattern;
    root = folder / "tiny-fp16-cpu";
    std::ifstream file(ARCFLOW_SOURCE_DIR "/engines/bundles/tiny-fp16-cpu/manifest.json");
    auto manifest = nlohmann::json::parse(file);
    for (auto& entry : manifest["files"]) {
      const std::string path = entry["path"];
      write(root / path, path);
      entry["size"] = path.size();
      entry["sha256"] = sha256_hex(path.data(), path.size());
    }
    manifest["digest"] = "";
    const std::string blank = manifest.dump(2);
    manifest["digest"] = sha256_hex(blank.data(), blank.size());
    write(root / "manifest.json", manifest.dump(2));
  }
  SmallBundle(const SmallBundle&) = delete;
  SmallBundle& operator=(const SmallBundle&) = delete;
  ~SmallBundle() { fs::remove_all(folder); }
};

template <class Action>
std::string refusal(Action action) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(error.code() == ARCFLOW_BUNDLE_REJECTED);
    return error.what();
  }
  return "";
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("SHA-256 and HMAC by their published vectors") {
  CHECK(sha256_hex("", 0) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex("abc", 3) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 hash;
  const std::string part(1000, 'a');
  for (int i = 0; i < 1000; ++i) hash.update(part.data(), part.size());
  CHECK(hash.hex() == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  CHECK(hmac_hex(std::string(20, '\x0b'), "Hi There") ==
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  CHECK(hmac_hex("Jefe", "what do ya want for nothing?") ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  CHECK(equal_secret("abc", "abc"));
  CHECK(!equal_secret("abc", "abd"));
  CHECK(!equal_secret("abc", "ab"));
}

TEST_CASE("a bundle opens, verifies and gives its files") {
  const SmallBundle small;
  const Bundle bundle = Bundle::open(small.root);
  bundle.verify();
  for (const FileEntry& file : bundle.manifest().files) {
    CHECK(text(bundle.read(file.path)) == file.path);
    CHECK(text(bundle.map(file.path)) == file.path);
  }
  CHECK(Bundle::open(ARCFLOW_SOURCE_DIR "/engines/bundles/tiny-fp16-cpu").manifest().model == "tiny");
}

TEST_CASE("bytes live as long as their blob, whatever becomes of bundle and file") {
  const SmallBundle small;
  const auto read = [&](bool mapped) {
    const Bundle bundle = Bundle::open(small.root);
    return mapped ? bundle.map("clip.onnx") : bundle.read("clip.onnx");
  };
  const Blob held = read(false), mapped = read(true);
  fs::remove(small.root / "clip.onnx");
  write(small.root / "clip.onnx", "other....");
  CHECK(text(held) == "clip.onnx");
  CHECK(text(mapped) == "clip.onnx");
}

TEST_CASE("what takes a file's place after opening is rejected") {
  const SmallBundle small;
  const Bundle bundle = Bundle::open(small.root);
  const fs::path file = small.root / "clip.onnx";
  const auto refused = [&](const std::string& words) {
    CHECK(holds(refusal([&] { bundle.read("clip.onnx"); }), words));
    CHECK(holds(refusal([&] { bundle.map("clip.onnx"); }), words));
    CHECK(holds(refusal([&] { bundle.verify(); }), words));
  };
  write(file, "clip.onny");
  refused("'clip.onnx' was altered");
  write(file, "clip.onn");
  refused("has 8 bytes, its manifest says 9");
  fs::remove(file);
  refused("is missing");
  write(small.folder / "elsewhere", "clip.onnx");
  fs::create_symlink(small.folder / "elsewhere", file);
  refused("is a symbolic link");
  fs::remove(file);
  fs::create_hard_link(small.folder / "elsewhere", file);
  refused("is a hard link (it has 2 names)");
  fs::remove(file);
  REQUIRE(::mkfifo(file.c_str(), 0600) == 0);
  refused("is not a plain file");
  fs::remove(file);
  fs::create_directory(file);
  refused("is not a plain file");
}

TEST_CASE("links are followed where they are allowed, and only to the files of the manifest") {
  const SmallBundle small;
  const fs::path file = small.root / "clip.onnx", blob = small.folder / "blob";
  fs::rename(file, blob);
  fs::create_symlink("../blob", file);
  CHECK(holds(refusal([&] { Bundle::open(small.root); }), "or run it with --allow-links"));
  const Bundle bundle = Bundle::open(small.root, true);
  bundle.verify();
  CHECK(text(bundle.read("clip.onnx")) == "clip.onnx");
  CHECK(text(bundle.map("clip.onnx")) == "clip.onnx");
  const auto refused = [&](const std::string& words) {
    CHECK(holds(refusal([&] { bundle.read("clip.onnx"); }), words));
    CHECK(holds(refusal([&] { bundle.map("clip.onnx"); }), words));
    CHECK(holds(refusal([&] { bundle.verify(); }), words));
  };
  const auto lead_to = [&](const fs::path& target) {
    fs::remove(file);
    fs::create_symlink(target, file);
  };
  write(blob, "evil.onnx");
  refused("'clip.onnx' was altered");
  fs::remove(blob);
  refused("'clip.onnx' is a symbolic link that leads nowhere");
  lead_to("clip.onnx");
  refused("cannot read 'clip.onnx': Too many levels of symbolic links");
  lead_to(small.folder);
  refused("'clip.onnx' is a symbolic link that leads to no plain file");
  REQUIRE(::mkfifo(blob.c_str(), 0600) == 0);
  lead_to(blob);
  refused("'clip.onnx' is a symbolic link that leads to no plain file");
}

TEST_CASE("while another thread exchanges a file, each read gives the checked bytes or an Error") {
  const SmallBundle small;
  const Bundle bundle = Bundle::open(small.root);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    for (int i = 0; !stop; ++i) {
      const fs::path next = small.folder / "next";
      write(next, i % 2 == 0 ? "clip.onnx" : "evil.onnx");
      fs::rename(next, small.root / "clip.onnx");
    }
  });
  int taken = 0, refused = 0;
  for (int i = 0; i < 4000 || ((taken == 0 || refused == 0) && i < 400000); ++i) {
    try {
      const Blob blob = i % 2 == 0 ? bundle.read("clip.onnx") : bundle.map("clip.onnx");
      CHECK(text(blob) == "clip.onnx");
      ++taken;
    } catch (const Error& error) {
      CHECK(error.code() == ARCFLOW_BUNDLE_REJECTED);
      ++refused;
    }
  }
  stop = true;
  other.join();
  MESSAGE(taken, " reads taken, ", refused, " rejected");
  CHECK(taken > 0);
  CHECK(refused > 0);
}

TEST_CASE("names and paths") {
  CHECK(parse_name("flux-dev-bf16-sm120")->model == "flux-dev");
  for (const char* name :
       {"", "-", "--", "notes", "tiny-fp16", "-fp16-cpu", "tiny--cpu", "tiny-fp16-", "Tiny-fp16-cpu"}) {
    CHECK_MESSAGE(!parse_name(name), name);
  }
  CHECK(plain_path("a//b/./c/") == "a/b/c");
  CHECK(plain_path("./") == ".");
  CHECK(plain_path("//a") == "//a");
  CHECK(plain_path("///a/..") == "/a/..");
  CHECK(serves({"m", "fp8", "rtx"}, "sm89"));
  CHECK(!serves({"m", "fp8", "rtx"}, "sm90"));
}

TEST_CASE("the speed of hashing, for the record") {
  const std::string data(std::size_t{64} << 20, 'x');
  const auto start = std::chrono::steady_clock::now();
  CHECK(sha256_hex(data.data(), data.size()).size() == 64);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  MESSAGE("SHA-256: ", static_cast<double>(data.size()) / seconds.count() / 1e6, " MB/s");
}
