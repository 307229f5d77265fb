// NNI's manager (nni_node/core/tuner_command_channel.js) gives the tuner's process 10 seconds to import nni, pandas and
// scipy and to connect; on a busy machine that is too little, and the experiment is lost before it began.
// Loaded by NODE_OPTIONS=--require, this makes it 50 seconds.
"use strict";
const Module = require("module");
const path = require("path");
const load = Module._extensions[".js"];
Module._extensions[".js"] = function (module, filename) {
  if (filename.endsWith(path.join("core", "tuner_command_channel.js"))) {
    const compile = module._compile;
    module._compile = function (code, name) {
      return compile.call(this, code.replace("}, 10000);", "}, 50000);").replace("in 10 seconds", "in 50 seconds"), name);
    };
  }
  return load(module, filename);
};
