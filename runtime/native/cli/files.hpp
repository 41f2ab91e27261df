// The files of arcflow-cli: their names, whether they can be written, and that all of them appear or none.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cli {

constexpr std::size_t kSlugCharacters = 48;

// What the user can mend.
struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A path as Python prints it: without "." and double slashes.
inline std::string tidy(const std::string& path) {
  std::istringstream parts(path);
  std::string out = path.rfind('/', 0) == 0 ? "/" : "", part;
  while (std::getline(parts, part, '/')) {
    if (!part.empty() && part != ".") out += (out.empty() || out.back() == '/' ? "" : "/") + part;
  }
  return out.empty() ? "." : out;
}

// A file name of a prompt: its ASCII letters and digits, with dashes between. Two letters beyond ASCII have one of
// ASCII's as their small letter: the Kelvin sign and the dotted capital I.
inline std::string slug(const std::string& prompt) {
  std::string out;
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    char letter = prompt[i];
    if (prompt.compare(i, 3, "\xE2\x84\xAA") == 0) {
      letter = 'k';
      i += 2;
    } else if (prompt.compare(i, 2, "\xC4\xB0") == 0) {
      letter = 'i';  // and its second byte a dash, as the dot that is left over
    }
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    if ((letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9')) {
      out += letter;
    } else if (out.empty() || out.back() != '-') {
      out += '-';
    }
  }
  out = out.substr(0, kSlugCharacters);
  out.erase(0, std::min(out.find_first_not_of('-'), out.size()));
  out.erase(out.find_last_not_of('-') + 1);
  return out.empty() ? "image" : out;
}

inline std::string two_digits(std::uint32_t value) { return (value < 10 ? "0" : "") + std::to_string(value); }

// out, or out with `tail` before ".png".
inline std::string with_tail(const std::string& out, const std::string& tail) {
  return out.substr(0, out.size() - 4) + tail + out.substr(out.size() - 4);
}

// Throws UserError unless the path ends in .png, in whatever case.
inline void check_ending(const std::string& path) {
  std::string ending = std::filesystem::path(path).extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  if (ending != ".png") {
    throw UserError("cannot write " + path + ": only PNG files are written; give a name that ends in .png");
  }
}

// Of every image of the request its file, followed by those of its previews.
inline std::vector<std::string> targets(const std::string& out, std::uint32_t count, std::uint32_t previews) {
  std::vector<std::string> paths;
  for (std::uint32_t index = 0; index < count; ++index) {
    const std::string name = count == 1 ? out : with_tail(out, "-" + two_digits(index));
    paths.push_back(name);
    for (std::uint32_t frame = 0; frame < previews; ++frame) {
      paths.push_back(with_tail(name, "-preview-" + two_digits(frame)));
    }
  }
  return paths;
}

inline std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// Throws where a path cannot become a file, so that this is known before the work and not after.
inline void check_targets(const std::vector<std::string>& paths) {
  const auto type_of = [](const std::string& path, const std::string& target) {
    std::error_code code;
    const auto type = std::filesystem::status(target, code).type();
    if (type == std::filesystem::file_type::none) {
      throw UserError("cannot write " + path + ": " + std::strerror(code.value()) + "; choose another --out");
    }
    return type;
  };
  for (const std::string& path : paths) {
    if (type_of(path, path) == std::filesystem::file_type::directory) {
      throw UserError("cannot write " + path + ": it is a folder; give the name of a file that ends in .png");
    }
    std::string folder = parent_of(path);
    while (type_of(path, folder) == std::filesystem::file_type::not_found) folder = parent_of(folder);
    if (type_of(path, folder) != std::filesystem::file_type::directory) {
      throw UserError("cannot write " + path + ": " + folder + " is not a folder; choose another --out");
    }
  }
}

// Files that lie complete beside their places until commit(): all of them appear, or none.
class Files {
 public:
  ~Files() {
    for (const auto& [temporary, path] : pending_) unlink(temporary.c_str());
  }

  void add(const std::string& path, const std::string& content) {
    std::error_code code;
    std::filesystem::create_directories(parent_of(path), code);
    const std::string name = path.substr(path.rfind('/') + 1);
    std::string temporary = parent_of(path) + "/." + name + ".XXXXXX.png";
    const int file = code ? -1 : mkstemps(temporary.data(), 4);
    if (file < 0) fail(path, code ? code.value() : errno);
    pending_.emplace_back(temporary, path);
    const mode_t mask = umask(0);
    umask(mask);
    bool good = fchmod(file, 0666 & ~mask) == 0;
    for (std::size_t done = 0; good && done < content.size();) {
      const ssize_t count = write(file, content.data() + done, content.size() - done);
      good = count >= 0 || errno == EINTR;
      done += count > 0 ? static_cast<std::size_t>(count) : 0;
    }
    const int reason = errno;
    if (close(file) != 0 || !good) fail(path, good ? errno : reason);
  }

  void commit() {
    while (!pending_.empty()) {
      const auto& [temporary, path] = pending_.back();
      if (rename(temporary.c_str(), path.c_str()) != 0) fail(path, errno);
      pending_.pop_back();
    }
  }

 private:
  [[noreturn]] static void fail(const std::string& path, int reason) {
    throw UserError("cannot write " + path + ": " + std::strerror(reason) +
                    "; choose a path that you may write to and that has room");
  }
  std::vector<std::pair<std::string, std::string>> pending_;
};

}  // namespace cli
