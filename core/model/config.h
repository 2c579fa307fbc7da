/* config.h — whether a model's configuration can be one. */
#ifndef PYR_CONFIG_H
#define PYR_CONFIG_H

#include "backend/op_args.h"

/* Each number in its range, and what they must be to each other; arrays that are used are there,
 * of numbers in range. PYR_FORMAT names the field. After it, products of two dimensions fit in
 * 64 bits, and shapes of weights can be relied on. */
pyr_status pyr_config_check(pyr_runtime *rt, const pyr_model_config *c);

#endif
