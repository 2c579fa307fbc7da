-- random_models(shape): a model of random weights for all specs of the file that calls it, on the
-- processor and on another device: { cpu = model, device = model }, filled before the first spec
-- and closed after the last. Second, a function that gives the folder in which it lies as "model".
local busted = require "busted"
local helper = require "spec.helper"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

return function(shape)
  local models, folder = {}, nil
  busted.setup(function()
    folder = shell.folder()
    local path = folder .. "/model"
    assert(random_model.write(path, { shape = shape, dtype = "f32", seed = 5 }))
    models.cpu = assert(pyramid.model(path, { device = "cpu", threads = 2 }))
    models.device = assert(pyramid.model(path,
      { device = helper.device == "cpu" and "emulated" or helper.device }))
  end)
  busted.teardown(function()
    for _, model in pairs(models) do model:close() end
    shell.remove(folder)
  end)
  return models, function() return folder end
end
