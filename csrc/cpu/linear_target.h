// What every file of the linear kernels includes before it switches an instruction set on.
#pragma once
#include "cpu/linear.h"
#include "cpu/linear_gelu.h"
#include "cpu/target.h"
