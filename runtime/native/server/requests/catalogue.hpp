// The models of a server and the names that they go by. Pure: nothing is loaded here.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "server/engine.hpp"

namespace arcflow::serve {

class Catalogue {
 public:
  struct Entry {
    ModelDescription model;
    std::string id;  // the model's name, or its bundle's where a model before it has that name
    std::vector<std::string> aliases;
  };

  Catalogue() = default;
  // aliases: "NAME=MODEL", MODEL being any name of a model's. Throws std::invalid_argument with a sentence where a
  // bundle is there twice, an alias names no model of these, or is a name already.
  explicit Catalogue(const std::vector<ModelDescription>& models, const std::vector<std::string>& aliases = {});

  // At least one, in the order given; the first is for requests that name none.
  const std::vector<Entry>& all() const { return entries_; }
  // The place of the model with this name: a model's, a bundle's, or an alias. Throws ApiError (404).
  std::size_t find(const std::string& name) const;

 private:
  void add_alias(const std::string& alias);
  std::string ids(bool with_aliases) const;

  std::vector<Entry> entries_;
  std::map<std::string, std::size_t> names_;
};

}  // namespace arcflow::serve
