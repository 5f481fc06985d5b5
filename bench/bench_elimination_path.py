def test_elimination_path(check_then_time, case, contender):
    check_then_time(case, contender)
