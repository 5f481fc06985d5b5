// What every file of the attention kernels includes before it switches an instruction set on.
#pragma once
#include "cpu/attention.h"
#include "cpu/target.h"
