def test_restore_conv3x3(check_then_time, case, contender):
    check_then_time(case, contender)
