def test_crop(check_then_time, case, contender):
    check_then_time(case, contender)
