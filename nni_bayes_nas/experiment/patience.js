// NNI's manager (nni_node/core/tuner_command_channel.js) gives the tuner's process 10 seconds to import nni, pandas and
// scipy and to connect; on a busy machine that is too little, and the experiment is lost before it began: 50 seconds.
// It looks every half second for trials to start and for trials that have ended (nni_node/core/nnimanager.js), so that
// a slot stands empty for half a second after each trial: a tenth of that.
// Loaded by NODE_OPTIONS=--require.
"use strict";
const Module = require("module");
const path = require("path");
const mends = {
  "tuner_command_channel.js": [["}, 10000);", "}, 50000);"], ["in 10 seconds", "in 50 seconds"]],
  "nnimanager.js": [["this.pollInterval = 0.5;", "this.pollInterval = 0.05;"]],
};
const load = Module._extensions[".js"];
Module._extensions[".js"] = function (module, filename) {
  const mend = path.basename(path.dirname(filename)) === "core" && mends[path.basename(filename)];
  if (mend) {
    const compile = module._compile;
    module._compile = function (code, name) {
      return compile.call(this, mend.reduce((text, [was, is]) => text.replace(was, is), code), name);
    };
  }
  return load(module, filename);
};
